"""How a request's body is spelled and how its answer is wanted, where that is not plain JSON."""

from typing import Final

from tapster.contract.errors import TapsterError
from tapster.serving.rest.bodies import invalid
from tapster.serving.rest.codings import CODINGS, accepted

LENGTH: Final = b"inference-header-content-length"
CSV: Final = b"text/csv"
MAX_ACCEPT: Final = 256
JSON_TYPES: Final = frozenset(
    {
        b"application/json",
        b"text/json",
        b"application/octet-stream",
        b"application/x-www-form-urlencoded",
    }
)


class Form:
    """What the head of a request says of bodies.

    `coding`: of the request's body, b"" for none. `accepts`: of the answer's. `header`: bytes of
    JSON before the binary tensors, -1 where there are none. `csv`: the rows come as CSV, `as_csv`:
    they are wanted so.
    """

    __slots__ = ("accepts", "as_csv", "coding", "csv", "header")

    def __init__(
        self,
        *,
        coding: bytes = b"",
        accepts: bytes = b"",
        header: int = -1,
        csv: bool = False,
        as_csv: bool = False,
    ) -> None:
        self.coding = coding
        self.accepts = accepts
        self.header = header
        self.csv = csv
        self.as_csv = as_csv

    @property
    def plain(self) -> bool:
        """Whether body and answer are JSON as it is."""
        return not (self.coding or self.accepts or self.csv or self.as_csv or self.header >= 0)


PLAIN: Final = Form()


def form_of(noted: dict[bytes, bytes], *, tables: bool, binary: bool) -> Form:
    """The form that headers tell. `tables`: CSV is understood here; `binary`: binary tensors.

    Raises TapsterError: unsupported for a type or coding that is not understood, invalid for a
    length of the inference header that cannot be.
    """
    csv = _is_table(noted.get(b"content-type"), tables)
    coding = noted.get(b"content-encoding", b"").strip().lower()
    if coding in {b"", b"identity"}:
        coding = b""
    elif coding not in CODINGS:
        raise TapsterError("unsupported", "the body may be compressed by gzip or deflate only")
    found = Form(
        coding=CODINGS.get(coding, b""),
        accepts=accepted(noted.get(b"accept-encoding", b"")[:MAX_ACCEPT]),
        header=_header(noted, binary) if LENGTH in noted else -1,
        csv=csv,
        as_csv=tables and CSV in noted.get(b"accept", b"").lower(),
    )
    return PLAIN if found.plain else found


def _is_table(kind: bytes | None, tables: bool) -> bool:
    if kind is None or kind in JSON_TYPES:
        return False
    essence = kind.partition(b";")[0].strip().lower()
    if tables and essence == CSV:
        return True
    if essence not in JSON_TYPES and not essence.endswith(b"+json"):
        known = "application/json or text/csv" if tables else "application/json"
        raise TapsterError("unsupported", f"the body must be {known}")
    return False


def _header(noted: dict[bytes, bytes], binary: bool) -> int:
    text = noted[LENGTH]
    if not binary:
        raise invalid("binary tensors are understood by the Open Inference protocol only")
    if not text.isdigit() or len(text) > 15:
        raise invalid("the header inference-header-content-length must be a whole number")
    length = int(text)
    known = b"content-length" in noted and b"content-encoding" not in noted
    if known and length > int(noted[b"content-length"]):
        raise invalid("the header inference-header-content-length is longer than the body")
    return length
