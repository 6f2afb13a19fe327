"""The beginnings of HTTP responses, spelled once a second because of their date."""

import itertools
import math
import secrets
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from tapster.serving.meters import LimitError

MAX_IDENTITY: Final = 128
JSON: Final = b"content-type: application/json\r\n"
_RETRIED: Final = frozenset({429, 503})


class Heads:
    """Response heads by status, up to the request's identifier and the length of the body."""

    def __init__(self) -> None:
        self._good = b""
        self._heads: dict[int, bytes] = {}
        self._prefix = secrets.token_hex(4).encode() + b"-"
        self._next = itertools.count(1).__next__

    def renew(self) -> None:
        """Forget what carries an old date; to be called every second."""
        self._good = b""
        self._heads = {}

    def identify(self, given: bytes = b"") -> bytes:
        """The identifier of a request: the given one if it is printable ASCII and not too long,
        else one that no other request of this worker has."""
        if given and len(given) <= MAX_IDENTITY and given.isascii() and _printable(given):
            return given
        return b"%b%x" % (self._prefix, self._next())

    def good(self, body: bytes) -> bytes:
        """The response to most requests: 200, JSON, an identifier of ours, and on we go."""
        head = self._good
        if not head:
            head = self._good = self._head(200) + JSON + b"x-request-id: " + self._prefix
        return b"%b%x\r\ncontent-length: %d\r\n\r\n%b" % (head, self._next(), len(body), body)

    def respond(  # noqa: PLR0917
        self,
        status: int,
        body: bytes,
        keep_alive: bool,
        identity: bytes = b"",
        lines: bytes = b"",
        allow: str = "",
        pause: float = 0.0,
    ) -> bytes:
        """Any response. `lines` are the headers that tell of its body, of JSON if there are none;
        `allow` names the method that a 405 asks for, `pause` is when to try again, in seconds."""
        head = [
            self._head(status),
            lines or JSON,
            b"x-request-id: %b\r\n" % (identity or self.identify()),
            b"" if keep_alive else b"connection: close\r\n",
            f"allow: {allow}\r\n".encode() if allow else b"",
            b"retry-after: %d\r\n" % max(1, math.ceil(pause)) if status in _RETRIED else b"",
            b"content-length: %d\r\n\r\n" % len(body),
        ]
        return b"".join((*head, body))

    def _head(self, status: int) -> bytes:
        head = self._heads.get(status)
        if head is None:
            text = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            text += f"date: {formatdate(usegmt=True)}\r\n"
            text += "www-authenticate: Bearer\r\n" if status == 401 else ""
            head = self._heads[status] = text.encode()
        return head


def quota(error: LimitError) -> bytes:
    """The headers that tell of a limit (draft-ietf-httpapi-ratelimit-headers-06)."""
    resets = max(1, math.ceil(error.resets))
    return b"ratelimit-limit: %d\r\nratelimit-remaining: %d\r\nratelimit-reset: %d\r\n" % (
        error.limit,
        error.remaining,
        resets,
    )


def _printable(text: bytes) -> bool:
    return text.decode("ascii").isprintable()
