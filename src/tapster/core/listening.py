"""uvicorn's server on a port that may speak TLS: handshakes have a deadline, certificates follow
their files, and the application hears of a caller's certificate (the ASGI extension `tls`)."""

import asyncio
import signal
from contextlib import suppress
from functools import partial
from socket import socket
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

from tapster.contract.errors import TapsterError
from tapster.core.telemetry import logger
from tapster.core.tls import Certificate

log = logger(__name__)

HANDSHAKE_SECONDS: Final = 5.0
_LOOK: Final = 1.0


class TlsServer(Server):
    """See uvicorn.Server; without a certificate it is just that."""

    def __init__(self, config: Config, certificate: Certificate | None = None) -> None:
        super().__init__(config)
        self._certificate = certificate

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """See uvicorn.Server."""
        context = self.config.ssl
        if context is None or sockets is None:
            await super().startup(sockets)
            return
        await super().startup([])
        protocol: Any = self.config.http_protocol_class
        make = partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        loop = asyncio.get_running_loop()
        for listener in sockets:
            server = await loop.create_server(
                make,
                sock=listener,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                backlog=self.config.backlog,
            )
            self.servers.append(server)
        if self._certificate is not None:
            follow(loop, self._certificate)


class CertifiedProtocol(HttpToolsProtocol):
    """HTTP whose requests say which certificate their caller has shown, if it was a good one."""

    def on_message_begin(self) -> None:
        """See HttpToolsProtocol."""
        super().on_message_begin()
        shown: Any = self.transport.get_extra_info("peercert")
        subject = "/".join(f"{k}={v}" for part in (shown or {}).get("subject", ()) for k, v in part)
        scope: Any = self.scope
        scope["extensions"] = {"tls": {"client_cert_name": subject or ("?" if shown else None)}}


def follow(loop: asyncio.AbstractEventLoop, certificate: Certificate) -> None:
    """Take a renewed certificate when its files change, and when SIGHUP asks for it."""

    def look(force: bool = False) -> None:
        try:
            if certificate.refresh(force=force):
                log.info("the certificate was read again")
        except TapsterError as error:
            log.error("the certificate stays as it was", reason=error.message)

    def look_on() -> None:
        look()
        loop.call_later(_LOOK, look_on)

    with suppress(ValueError, NotImplementedError, RuntimeError):  # not in the main thread
        loop.add_signal_handler(signal.SIGHUP, look, True)
    loop.call_later(_LOOK, look_on)
