"""The control HTTP application: the slices' routes, one error shape, a true OpenAPI description."""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import ceil
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import DataError, DBAPIError
from starlette.exceptions import HTTPException

from tapster.contract.control import Principal
from tapster.contract.errors import HTTP_STATUS, Code, TapsterError
from tapster.core.blobs import storage_error
from tapster.core.parts import Parts
from tapster.core.telemetry import logger
from tapster.tenancy.access import Uses, everybody, need
from tapster.tenancy.audit.middleware import Recorded
from tapster.tenancy.audit.record import Record
from tapster.tenancy.limits import storage
from tapster.tenancy.rights import ANY

log = logger(__name__)

_BY_STATUS: dict[int, Code] = {status: code for code, status in HTTP_STATUS.items()}
PREFIX: Final = "/api/v1"
_UNIQUE: Final = "23505"  # PostgreSQL: a key that is there by now
_MAX_UPLOAD: Final = 1 << 50  # the disk is the limit: a full one is said in words
Background = Callable[[], Awaitable[None]]


@dataclass
class ErrorDetail:
    """What was wrong, what to do about it, and which part of the input it was."""

    code: Code
    message: str
    hint: str
    field: str


@dataclass
class ErrorBody:
    """The body of every refusal."""

    error: ErrorDetail


@dataclass
class Upload:
    """An open upload."""

    id: str


@dataclass
class ReceivedFile:
    """A file that arrived: SHA-256 in hex, size in bytes."""

    sha256: str
    size: int


def build(
    parts: Parts,
    routers: Sequence[APIRouter],
    background: Sequence[Background],
    record: Record,
) -> FastAPI:
    """The application; `background` runs beside it and is cancelled when it stops.

    `record` hears of every request, and is closed last.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        using: Background = partial(app.state.uses.run, parts.db)
        tasks = [asyncio.create_task(_forever(work)) for work in (*background, using)]
        yield
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(record.close)

    app = FastAPI(
        title="Tapster control API",
        version=version("tapster"),
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        max_body_size=parts.settings.max_body,
        responses={"default": {"model": ErrorBody, "description": "Refused, and why"}},
    )
    app.add_middleware(Recorded, record=record)
    app.state.parts = parts
    app.state.uses = Uses()
    app.state.rights = {}
    for router in (*routers, _uploads(parts), _server(parts)):
        _include(app, router, "" if router.prefix == "/internal" else PREFIX)
    _include(app, _public(), "")
    _render_errors(app)
    _describe(app)
    return app


def _include(app: FastAPI, router: APIRouter, prefix: str) -> None:
    """Mount a slice's routes, and note the right that each one needs."""
    app.include_router(router, prefix=prefix)
    for route in router.routes:
        assert isinstance(route, APIRoute)
        calls = [dependency.call for dependency in route.dependant.dependencies]
        rights = [call.right for call in calls if call is not None and hasattr(call, "right")]
        for method in route.methods or ():
            app.state.rights[method, prefix + route.path] = rights


async def _forever(work: Background) -> None:
    """Run background work; if it fails, say so and begin again."""
    while True:
        try:
            await work()
            return
        except Exception:
            log.exception("background work failed; starting it again")
            await asyncio.sleep(1)


def _public() -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/health", dependencies=[Depends(everybody)])
    def health() -> dict[str, str]:
        """Whether the control plane answers. Needs no key."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=PlainTextResponse, include_in_schema=False)
    def metrics(who: Annotated[Principal, Depends(need("metrics:read"))]) -> PlainTextResponse:
        """The control process's own metrics, for Prometheus."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return PlainTextResponse(generate_latest().decode(), media_type=CONTENT_TYPE_LATEST)

    return router


def _server(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/info")
    def info(who: Annotated[Principal, Depends(need(ANY))]) -> dict[str, str]:
        """The server's version, where inference answers, and which tenant the key belongs to."""
        return {
            "version": version("tapster"),
            "rest_url": parts.settings.rest_url,
            "grpc_url": parts.settings.grpc_url,
            "tenant": who.tenant,
        }

    @router.get("/resources")
    def resources(who: Annotated[Principal, Depends(need("server:read"))]) -> dict[str, Any]:
        """Cores, memory and disk of this machine, and its job slots."""
        import psutil

        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(parts.settings.home))
        return {
            "cores": psutil.cpu_count(),
            "cpu_percent": psutil.cpu_percent(),
            "memory_total": memory.total,
            "memory_available": memory.available,
            "disk_total": disk.total,
            "disk_free": disk.free,
            "job_slots": parts.settings.job_slots,
            "workers": parts.settings.workers,
        }

    return router


def _uploads(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/uploads", tags=["uploads"])

    @router.post("", status_code=201)
    def open_upload(who: Annotated[Principal, Depends(need("uploads:write"))]) -> Upload:
        """Open an upload, into which files are sent one by one."""
        return Upload(parts.uploads.create(who.tenant))

    @router.put("/{upload}/files/{filename}", max_body_size=_MAX_UPLOAD)
    async def send_file(
        who: Annotated[Principal, Depends(need("uploads:write"))],
        upload: str,
        filename: str,
        request: Request,
    ) -> ReceivedFile:
        """Send one file as the raw body of the request."""
        body = request.stream()
        digest, size = await storage.receive(parts, who.tenant, upload, filename, body)
        return ReceivedFile(digest, size)

    return router


def _render_errors(app: FastAPI) -> None:
    def answer(error: TapsterError) -> JSONResponse:
        waiting = error.code in {"unavailable", "exhausted"}
        headers = {"Retry-After": str(max(1, ceil(error.retry_after)))} if waiting else None
        return JSONResponse(
            {"error": error.as_dict()}, status_code=HTTP_STATUS[error.code], headers=headers
        )

    @app.exception_handler(TapsterError)
    def refused(_: Request, error: TapsterError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        where = f"{first['loc'][0]} {place}".strip()
        return answer(TapsterError("invalid", f"{where}: {first['msg']}", field=place))

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        code = _BY_STATUS.get(error.status_code, "invalid")
        body = TapsterError(code, str(error.detail)).as_dict()
        return JSONResponse({"error": body}, error.status_code, error.headers)

    @app.exception_handler(UnicodeEncodeError)
    def not_text(_: Request, error: UnicodeEncodeError) -> JSONResponse:
        return answer(
            TapsterError(
                "invalid",
                "the request holds text that is not Unicode (half a surrogate pair)",
                hint="send UTF-8",
            )
        )

    @app.exception_handler(DBAPIError)
    def database(_: Request, error: DBAPIError) -> JSONResponse:
        if isinstance(error, DataError):
            return answer(
                TapsterError(
                    "invalid",
                    "the request holds a value that the database cannot hold",
                    hint="leave out NUL characters, and numbers of more than nine digits",
                )
            )
        if getattr(error.orig, "sqlstate", "") == _UNIQUE:
            return answer(
                TapsterError(
                    "conflict",
                    "somebody else has made the same thing at the same moment",
                    hint="look at what is there now",
                )
            )
        log.error("database refused", reason=str(error.orig))
        if "disk is full" in str(error.orig):
            return answer(storage_error(OSError(errno.ENOSPC, "")))
        return answer(
            TapsterError(
                "unavailable",
                "the database did not answer",
                hint="try again; if it goes on, run `tapster doctor`",
            )
        )

    @app.exception_handler(Exception)
    def crashed(_: Request, error: Exception) -> JSONResponse:
        return answer(TapsterError("internal", "something went wrong here; the log says what"))


def _describe(app: FastAPI) -> None:
    """Make the OpenAPI description say what is true: invalid input is 400, not FastAPI's 422."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
