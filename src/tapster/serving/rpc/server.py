"""The gRPC port of a worker: connections on the loop that serves REST, on a shared socket."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from tapster.core.listening import HANDSHAKE_SECONDS
from tapster.serving.rest.service import Service
from tapster.serving.rpc.port import Port
from tapster.serving.rpc.protocol import GrpcProtocol
from tapster.serving.rpc.services import all_methods

BACKLOG: Final = 2048
_LOOK: Final = 0.05


class GrpcServer:
    """Every method runs on the event loop."""

    def __init__(self, service: Service, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._port = Port(service, all_methods())
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Take connections from a socket that listens."""
        loop = asyncio.get_running_loop()
        make = partial(GrpcProtocol, self._port)
        deadline = HANDSHAKE_SECONDS if self._tls is not None else None
        self._server = await loop.create_server(
            make, sock=listener, backlog=BACKLOG, ssl=self._tls, ssl_handshake_timeout=deadline
        )

    def beat(self, now: float, prompt: bool) -> tuple[int, int]:
        """End what takes too long, unless it was the loop that did; called a few times a second.

        Returns the numbers of connections and of calls in flight.
        """
        connections: list[GrpcProtocol] = list(self._port.connections)
        if prompt:
            for connection in connections:
                connection.check(now)
        self._port.calls = sum(connection.open for connection in connections)
        return len(connections), sum(connection.in_flight for connection in connections)

    async def stop(self, grace: float, forced: Callable[[], bool]) -> None:
        """Take no more, let what was asked be answered, then hang up.

        That is after `grace` seconds, or as soon as it is forced.
        """
        if self._server is not None:
            self._server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        while self._port.connections and loop.time() < until and not forced():
            for connection in list(self._port.connections):  # one may have been accepted just now
                connection.shutdown()
            await asyncio.sleep(_LOOK)
        for connection in list(self._port.connections):
            connection.abort()
