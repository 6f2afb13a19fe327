"""One error type for the whole of Tapster, and what each code means on each transport."""

from typing import Any, Final, Literal, get_args

Code = Literal[
    "invalid",
    "unauthenticated",
    "forbidden",
    "not_found",
    "conflict",
    "too_large",
    "unsupported",
    "unprocessable",
    "exhausted",
    "cancelled",
    "internal",
    "unavailable",
    "deadline",
    "storage_full",
]

CODES: Final[tuple[Code, ...]] = get_args(Code)

HTTP_STATUS: Final[dict[Code, int]] = {
    "invalid": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "unsupported": 415,
    "unprocessable": 422,
    "exhausted": 429,
    "cancelled": 499,
    "internal": 500,
    "unavailable": 503,
    "deadline": 504,
    "storage_full": 507,
}

GRPC_STATUS: Final[dict[Code, str]] = {
    "invalid": "INVALID_ARGUMENT",
    "unauthenticated": "UNAUTHENTICATED",
    "forbidden": "PERMISSION_DENIED",
    "not_found": "NOT_FOUND",
    "conflict": "ALREADY_EXISTS",
    "too_large": "RESOURCE_EXHAUSTED",
    "unsupported": "UNIMPLEMENTED",
    "unprocessable": "FAILED_PRECONDITION",
    "exhausted": "RESOURCE_EXHAUSTED",
    "cancelled": "CANCELLED",
    "internal": "INTERNAL",
    "unavailable": "UNAVAILABLE",
    "deadline": "DEADLINE_EXCEEDED",
    "storage_full": "RESOURCE_EXHAUSTED",
}


class TapsterError(Exception):
    """Something a caller did, or must know about, in words meant for the caller.

    `message` says what was wrong and where, `hint` what to do about it, `field` which part of
    the input it was. None of them may hold a path of the server, a traceback or a secret.
    `retry_after`: seconds after which a full server may take the request, 0 if nobody knows.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        hint: str = "",
        field: str = "",
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.hint = hint
        self.field = field
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.code, self.message, self.hint, self.field, self.retry_after))

    def as_dict(self) -> dict[str, str]:
        """The error's four parts, as the control API and job rows carry them."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "field": self.field}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> "TapsterError":
        """The inverse of `as_dict`; an unknown code becomes `internal`."""
        code = parts.get("code")
        return cls(
            code if code in CODES else "internal",
            str(parts.get("message", "unknown error")),
            hint=str(parts.get("hint", "")),
            field=str(parts.get("field", "")),
        )


def _rebuild(code: Code, message: str, hint: str, field: str, retry_after: float) -> TapsterError:
    return TapsterError(code, message, hint=hint, field=field, retry_after=retry_after)
