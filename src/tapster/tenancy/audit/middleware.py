"""Every request is an act: its transactions find it here, and so does what came of it."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapster.tenancy.audit.acts import Act, current
from tapster.tenancy.audit.record import Record


class Recorded:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, record: Record) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        act = Act(scope=scope)  # type: ignore[arg-type]
        answered: dict[str, Any] = {}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered["status"] = message["status"]
            await send(message)

        token = current.set(act)
        try:
            await self._app(scope, receive, sending)
        except Exception:
            answered.setdefault("status", 500)
            raise
        finally:
            current.reset(token)
            if answered:
                self._record.ended(act, int(answered["status"]))
