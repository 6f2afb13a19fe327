"""What a port says while the process that should answer there does not live."""

import socket
import threading
import time
from contextlib import suppress
from typing import Final

from tapster.core import tls

_LINGER: Final = 1.0
_ABSENT: Final = (
    b'{"error":{"code":"unavailable","message":"the control plane is not running",'
    b'"hint":"it is started again and again; the log says why it ends","field":""}}'
)
_HEAD: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(_ABSENT)
)


class StandIn:
    """Answers 503 to whoever asks for the control plane while there is none."""

    def __init__(self, listener: socket.socket, certificate: tls.Certificate | None) -> None:
        self._listener = listener
        self._tls = certificate.context(tls.HTTP) if certificate is not None else None
        self._lingering: list[tuple[float, socket.socket]] = []

    def answer(self) -> None:
        """Refuse everybody who has come."""
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                if self._tls is not None:
                    self._tell_apart(caller)
                    continue
                caller.setblocking(False)
                self._lingering.append((time.monotonic() + _LINGER, caller))
                with suppress(OSError):
                    caller.sendall(_HEAD + _ABSENT)
                    caller.shutdown(socket.SHUT_WR)

    def _tell_apart(self, caller: socket.socket) -> None:
        """In a thread; where the machine lacks one, the caller is told nothing."""
        try:
            threading.Thread(target=self._tell, args=(caller,), daemon=True).start()
        except RuntimeError:
            caller.close()

    def _tell(self, caller: socket.socket) -> None:
        """Refuse a caller who speaks TLS."""
        assert self._tls is not None
        caller.settimeout(_LINGER)
        with suppress(OSError), self._tls.wrap_socket(caller, server_side=True) as line:
            line.recv(65536)
            line.sendall(_HEAD + _ABSENT)
            line.unwrap()

    def let_go(self) -> None:
        """Close the connections of those who have closed theirs, or had a moment to read.

        Closing one with unread input would reset it, and the answer might never be seen.
        """
        now = time.monotonic()
        self._lingering = [pair for pair in self._lingering if not self._closed(*pair, now)]

    @staticmethod
    def _closed(until: float, caller: socket.socket, now: float) -> bool:
        ended = now > until
        with suppress(BlockingIOError):
            try:
                while not ended:
                    ended = not caller.recv(65536)
            except ConnectionError:
                ended = True
        if ended:
            caller.close()
        return ended
