"""The memory that a connection holds: for the body that comes, and for answers not yet taken."""

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tapster.contract.errors import Code
from tapster.serving.rest.calls import Turn, crowded
from tapster.serving.rest.service import Service
from tapster.serving.slots import UNAVAILABLE

MAX_LINE: Final = 128
# Bytes of answers for which a connection may have requests in line.
MAX_ANSWERS: Final = 8 << 20
NEVER: Final = math.inf


class Holding(HttpToolsProtocol, ABC):
    """A connection, as far as the worker's memory is concerned."""

    def __init__(
        self,
        service: Service,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._service = service
        self._settings = service.settings
        self._share = service.shares.strangers
        self._memory = service.memory
        self._line: deque[Turn] = deque()
        self._longest = MAX_LINE  # requests that may be in line
        self._deaf = False  # whatever else arrives is dropped
        self._held = 0  # bytes of memory for the body that is being received
        self._since = 0.0  # when the first of them were held
        self._asked = 0  # more that is waited for
        self._patience = NEVER  # until then
        self._owed = 0  # bytes of answers that the client has not taken
        self.deadline = self.loop.time() + self._settings.receive_timeout

    def _reserve(self) -> None:
        """Hold memory for the body of which a part is here; without any, stop reading."""
        more = self._coming() - self._held
        if more <= 0 or self._deaf:
            return
        if self._memory.take(more):
            self._hold(more)
        elif self._memory.wait(self, more, self._share.tenant):
            self._asked = more
            self._patience = self.loop.time() + self._settings.receive_timeout / 2
            self.deadline = NEVER
            self.flow.pause_reading()
        else:
            self._no_room()

    def granted(self) -> None:
        """See Waiter."""
        self._hold(self._asked)
        self._asked = 0
        self._patience = NEVER
        if not self._line:
            self.deadline = self.loop.time() + self._settings.receive_timeout
        self._read_on()

    def denied(self) -> None:
        """See Waiter."""
        self._asked = 0
        self._no_room()

    def _hold(self, size: int) -> None:
        if not self._held:
            self._since = self.loop.time()
        self._held += size

    def _release(self) -> None:
        """Give the memory for the body back, and wait for no more."""
        if self._asked:
            self._asked = 0
            self._memory.forget(self)
        held, self._held = self._held, 0
        if held:
            self._memory.give(held)

    def _no_room(self) -> None:
        self._patience = NEVER
        error = crowded("bodies")
        self._service.region.count(self._service.region.nowhere, UNAVAILABLE)
        self._refuse_now(503, error.code, error.message, error.hint)

    def account(self) -> int:
        """See Line; how many bytes that is."""
        left = self.transport.get_write_buffer_size()
        if left != self._owed:
            self._memory.owe(left - self._owed)
            self._owed = left
        return left

    def takes(self, size: int) -> bool:
        """See Line."""
        self._longest = min(self._longest, max(1, MAX_ANSWERS // size))
        return not self._memory.unread

    @abstractmethod
    def _coming(self) -> int:
        """Bytes of memory that the body being received needs."""

    @abstractmethod
    def _read_on(self) -> None:
        """Go on reading."""

    @abstractmethod
    def _refuse_now(
        self, status: int, code: Code, message: str, hint: str = "", *, allow: str = ""
    ) -> None:
        """Refuse the request and hear no more from this connection."""
