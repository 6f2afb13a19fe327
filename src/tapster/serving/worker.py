"""A data-plane worker: `python -m tapster.serving.worker --index I --fd FD --slots PATH`.

It takes over the listening socket FD for REST, and that of `--grpc-fd` for gRPC, serves the last
good plan at once, and follows the plan file. SIGTERM turns readiness off and lets what is in flight
finish; a second one does not wait.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop
from uvicorn.config import Config

from tapster.contract.plan import WorkerState
from tapster.core import plugins, telemetry
from tapster.core.blobs import BlobStore
from tapster.core.listening import TlsServer
from tapster.core.processes import die_with_parent
from tapster.core.settings import Settings, load
from tapster.core.tls import HTTP, HTTP2, Certificate
from tapster.core.vault import Vault
from tapster.serving import accounts, agent, datakeys, tracing, watcher
from tapster.serving.engine import Engine
from tapster.serving.following import Follower
from tapster.serving.gate import Gate
from tapster.serving.isolation import close_all
from tapster.serving.payloads import Recorder
from tapster.serving.rest.application import Application
from tapster.serving.rest.protocol import InferenceProtocol
from tapster.serving.rest.sampled import SampledHeads
from tapster.serving.rest.service import Service
from tapster.serving.rpc.server import GrpcServer
from tapster.serving.slots import (
    CACHE_BYTES,
    CONNECTIONS,
    IN_FLIGHT,
    MODEL_BYTES,
    PLAN,
    QUEUED,
    READY,
    WORKERS,
    Slots,
)

log = logging.getLogger(__name__)

BEAT_SECONDS: Final = 0.25
WATCH_SECONDS: Final = 0.05
FIRST_LOAD_SECONDS: Final = 30.0
# A thousand packages that become ready one after another are not told of one by one.
PUBLISH_SECONDS: Final = 0.02
# How long the event loop waits at most for a thread that computes in Python.
SWITCH_SECONDS: Final = 0.001
UNSENT: Final = 128 * 1024


class _Server(TlsServer):
    """uvicorn's server, told about readiness, and ending with exit code 0."""

    def __init__(
        self,
        config: Config,
        service: Service,
        grpc: GrpcServer,
        certificate: Certificate | None,
    ) -> None:
        super().__init__(config, certificate)
        self._service = service
        self._grpc = grpc

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal stops gracefully, the second at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._service.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Both ports stop together; a second signal ends the waiting."""
        grace = self._service.settings.stop_grace
        stopping = self._grpc.stop(grace, lambda: self.force_exit)
        await asyncio.gather(super().shutdown(sockets), stopping)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Keep our own handlers; uvicorn would raise the signal again at the end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield


class Worker:
    """One worker's parts and its clock."""

    def __init__(self, index: int, settings: Settings, slots: Slots, vault: Vault | None) -> None:
        self._index = index
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._folder = settings.home / "run"
        self._region = slots.region(index)
        self._region.start(os.getpid())
        stored: BlobStore = plugins.load("tapster.blob_stores", settings.blob_store)(
            settings.home / "blobs"
        )
        blobs, self._keys = datakeys.reading(settings, stored, vault)
        gate = Gate(settings.no_auth)
        engine = Engine(
            slots,
            self._region,
            gate,
            blobs,
            settings,
            kept=vault.folder("shelf") if vault else None,
            changed=self._changed,
            stuck=self._stuck,
        )
        self._accounts = accounts.opened(settings.home, index, self._region)
        self.service = Service(settings, slots, self._region, gate, engine, self._accounts)
        self._engine = engine
        self._agent = agent.Agent(settings, slots)
        self._tracer = self.service.tracer = tracing.tracer(settings, index)
        if self._tracer is not None:
            self.service.seen = SampledHeads(self._tracer)
        self._recorder = Recorder(settings.home, self._region, self._keys.opened)
        engine.recorder = self._recorder
        self._watcher = watcher.Watcher(settings, slots, self._region, index, self._tracer)
        self._watcher.recorder = self._recorder
        self._follower = Follower(settings.home, engine, self._keys)
        self._beaten, self._prompt = self._loop.time(), True
        self._published: WorkerState | None = None
        self._told: WorkerState | None = None
        self._publishing = False
        certificate = Certificate(settings) if settings.encrypted else None
        config = Config(
            Application(self.service),
            http=partial(InferenceProtocol, self.service),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=2048,
            timeout_graceful_shutdown=settings.stop_grace,  # type: ignore[arg-type]
            ssl_context_factory=certificate.factory(HTTP) if certificate else None,
        )
        self._grpc = GrpcServer(self.service, certificate.context(HTTP2) if certificate else None)
        self._server = _Server(config, self.service, self._grpc, certificate)

    async def run(self, listener: socket.socket, grpc: socket.socket | None) -> None:
        """Serve until a signal. Connections wait in the socket while the saved plan loads."""
        self._beat()
        self._watch()
        self._changed()
        self._agent.start()
        self._watcher.start()
        with self._server.capture_signals():
            await self._first_load()
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        if grpc is not None:
            await self._grpc.start(grpc)
        await self._server.serve([listener])
        self._agent.stop()
        if self._tracer is not None:
            self._tracer.stop()
        await asyncio.to_thread(self._recorder.stop)

    async def _first_load(self) -> None:
        until = self._loop.time() + FIRST_LOAD_SECONDS
        follower = self._follower
        while follower.found and not self._server.should_exit:
            if self._engine.current and not follower.behind:
                break
            if self._loop.time() > until:
                log.warning("the saved plan is still being loaded; serving without it")
                break
            await asyncio.sleep(0.005)

    def _beat(self) -> None:
        """A few times a second: say we live, renew dates, close what has taken too long."""
        region, service = self._region, self.service
        region.beat()
        service.heads.renew()
        service.seen.forget(service.gate.generation + self._engine.generation)
        now = self._loop.time()
        # After a turn that took long, what clients sent meanwhile has not been read yet; by the
        # next beat it has, however late that is too.
        prompt = now - self._beaten < 2 * BEAT_SECONDS or not self._prompt
        self._beaten, self._prompt = now, prompt
        waiting = 0
        connections: Any = list(self._server.server_state.connections)
        for connection in connections:
            if prompt:
                connection.check(now)
            waiting += connection.in_flight
        more, calls = self._grpc.beat(now, prompt)
        region.set(CONNECTIONS, len(connections) + more)
        region.set(IN_FLIGHT, waiting + calls)
        region.set(QUEUED, self._engine.queued())
        region.set(READY, int(service.ready))
        models, cached = self._engine.memory
        region.set(MODEL_BYTES, models)
        region.set(CACHE_BYTES, cached)
        if self._accounts.beat():
            self._engine.generation += 1
        self._loop.call_later(BEAT_SECONDS, self._beat)

    def _watch(self) -> None:
        """Apply the saved plan whenever it changes."""
        self._loop.call_later(WATCH_SECONDS, self._watch)
        self._follower.look()
        self.service.repository.look()

    def _changed(self) -> None:
        """Tell the agent, wherever it runs, what has become of the plan here."""
        self._region.set(PLAN, max(self._engine.applied, 0))
        if not self._publishing:
            self._publishing = True
            self._loop.call_soon(self._publish)

    def _publish(self) -> None:
        state = WorkerState(
            worker=self._index,
            pid=os.getpid(),
            plan=self._engine.applied,
            packages=self._engine.states(),
        )
        if state == self._published:
            self._publishing = False
            return
        self._published = state
        watcher.changes(self._told, state)
        self._told = state
        done = self._loop.run_in_executor(None, agent.publish, self._folder, state)
        done.add_done_callback(self._after_publishing)

    def _after_publishing(self, done: "asyncio.Future[None]") -> None:
        if done.cancelled():
            return
        if done.exception() is not None:
            self._published = None
            self._loop.call_later(1.0, self._publish)
        else:
            self._loop.call_later(PUBLISH_SECONDS, self._publish)

    def _stuck(self) -> None:
        """A model's thread is lost: make room for a fresh worker."""
        if not self._server.should_exit:
            os.kill(os.getpid(), signal.SIGTERM)


async def _serve(options: argparse.Namespace, settings: Settings, slots: Slots) -> None:
    grpc = None if options.grpc_fd < 0 else _inherited(options.grpc_fd)
    vault = Vault.of(settings)
    if vault is not None:
        vault.adopt()
    await Worker(options.index, settings, slots, vault).run(_inherited(options.fd), grpc)


def _inherited(number: int) -> socket.socket:
    listener = socket.socket(fileno=number)
    listener.setblocking(False)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # What a client does not take must wait here, where it is seen, not in the kernel.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    return listener


def main(arguments: list[str] | None = None) -> None:
    """Run a worker. Never returns: a thread that a model holds must not keep the process."""
    parser = argparse.ArgumentParser(prog="tapster.serving.worker")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--grpc-fd", type=int, default=-1)
    parser.add_argument("--slots", type=Path, required=True)
    parser.add_argument("--parent", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.parent:
        die_with_parent(options.parent)
    if not 0 <= options.index < WORKERS:
        parser.error(f"a machine has at most {WORKERS} workers")
    _allow_many_connections()
    sys.setswitchinterval(SWITCH_SECONDS)
    settings = load()
    telemetry.configure(settings.log_level, settings.log_format, f"worker {options.index}")
    (settings.home / "run").mkdir(parents=True, exist_ok=True)
    slots = Slots(options.slots)
    code = 0
    try:
        uvloop.run(_serve(options, settings, slots))
    except Exception:
        log.exception("the worker failed")
        code = 1
    close_all()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _allow_many_connections() -> None:
    """Raise the soft limit of open files to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
