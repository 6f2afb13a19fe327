"""What every group of the SDK's verbs stands on: a connection, and how it asks."""

from collections.abc import Iterable
from typing import Any, TypeVar

from tapster.client.transport import Address, Transport

Answer = dict[str, Any]
T = TypeVar("T")


def listed(words: Iterable[str]) -> list[str]:
    """Words as a list; a text is one word, not its letters."""
    return [words] if isinstance(words, str) else list(words)


class Caller:
    """A connection to a server: its address, its wire, the URL of its inference."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._rest_url = address.rest_url
        self._transport = Transport(address)

    def info(self) -> Answer:
        """Version, inference URL and tenant."""
        return self._call(Answer, "GET", "/info")

    @property
    def rest_url(self) -> str:
        """Base URL of REST inference."""
        if not self._rest_url:
            self._rest_url = str(self.info()["rest_url"])
        return self._rest_url

    def _call(self, kind: type[T], method: str, path: str, body: Any = None, **extra: Any) -> T:
        return self._transport.call(kind, method, path, body, **extra)
