"""The beginnings of HTTP responses, spelled once a second because of their date."""

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

# Header lines that some statuses carry: what to do about a full server, a refused key.
_EXTRA: Final = {
    401: "www-authenticate: Bearer\r\n",
    429: "retry-after: 1\r\n",
    503: "retry-after: 1\r\n",
}


class Heads:
    """Response heads by status, up to the length of the body."""

    def __init__(self) -> None:
        self._heads: dict[int, bytes] = {}

    def renew(self) -> None:
        """Forget what carries an old date; to be called every second."""
        self._heads = {}

    def respond(self, status: int, body: bytes, keep_alive: bool, allow: str = "") -> bytes:
        """A whole response with a JSON body; `allow` names the method that a 405 asks for."""
        head = self._heads.get(status)
        if head is None:
            head = self._heads[status] = _head(status)
        if keep_alive and not allow:
            return b"".join((head, b"%d\r\n\r\n" % len(body), body))
        more = f"\r\nallow: {allow}" if allow else ""
        more += "" if keep_alive else "\r\nconnection: close"
        return b"%b%d%b\r\n\r\n%b" % (head, len(body), more.encode(), body)


def _head(status: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"date: {formatdate(usegmt=True)}\r\n"
        f"{_EXTRA.get(status, '')}"
        "content-type: application/json\r\n"
        "content-length: "
    ).encode()
