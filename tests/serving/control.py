"""A control plane that is real HTTP, in a few lines: whole plans and deltas down, reports up."""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from msgspec.structs import replace

from tapster.contract.plan import PlanDelta, ServingPlan, UsageBatch
from tapster.contract.snapshots import pack
from tapster.contract.usage import UsageReceipt
from tests.serving.conftest import AGENT_KEY


@dataclass
class Control:
    """It gives its plan out, as a delta to those for whom there is one, and keeps reports.

    `deltas` are JSON by the number and mark of the plan that they go on from; `wholes` counts how
    often the whole plan was given out; `ledger` is the mark that machines are told.
    """

    plan: ServingPlan = field(default_factory=lambda: ServingPlan(number=1))
    reports: list[UsageBatch] = field(default_factory=list)
    refusals: int = 0
    deltas: dict[tuple[int, str], bytes] = field(default_factory=dict)
    wholes: int = 0
    ledger: str = "kept"

    def start(self, port: int = 0) -> int:
        control = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                until = time.monotonic() + float(query["wait"][0])
                if not self.allowed():
                    return
                held = int(query["after"][0]), query.get("mark", [""])[0]
                while (control.plan.number, control.plan.mark) == held:
                    if time.monotonic() > until or control.closing:
                        self.answer(204, b"")
                        return
                    time.sleep(0.01)
                if held in control.deltas:
                    self.answer(226, control.deltas[held])
                    return
                control.wholes += 1
                self.answer(200, pack(control.plan))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.allowed():
                    batch = msgspec.json.decode(body, type=UsageBatch)
                    control.reports.append(batch)
                    mark = batch.ledger.mark if batch.ledger is not None else ""
                    receipt = UsageReceipt(
                        mark=control.ledger, again=mark not in {"", control.ledger}
                    )
                    self.answer(200, msgspec.json.encode(receipt))

            def allowed(self) -> bool:
                if self.headers["Authorization"] == f"Bearer {AGENT_KEY.decode()}":
                    return True
                control.refusals += 1
                self.answer(401, b"{}")
                return False

            def answer(self, status: int, body: bytes) -> None:
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.closing = False
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        return int(self.server.server_address[1])

    def stop(self) -> None:
        self.closing = True
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def change(self, **more: Any) -> ServingPlan:
        """The next plan, which a delta leads to."""
        before = self.plan
        number = before.number + 1
        delta = PlanDelta(before.number, before.mark, number, f"m{number}", **more)
        self.deltas[before.number, before.mark] = msgspec.json.encode(delta)
        self.plan = replace(
            before,
            number=number,
            mark=delta.mark,
            keys=_merged(before.keys, delta.keys, delta.gone_keys, "id"),
            tenants=_merged(before.tenants, delta.tenants, delta.gone_tenants, "tenant"),
            endpoints=_merged(before.endpoints, delta.endpoints, delta.gone_endpoints, "id"),
            packages=_merged(before.packages, delta.packages, (), "digest"),
            needs=_merged(before.needs, delta.needs, delta.gone_endpoints, "endpoint"),
        )
        return self.plan

    def newest(self) -> UsageBatch | None:
        return self.reports[-1] if self.reports else None


def _merged(before: Any, more: Any, gone: Any, name: str) -> tuple[Any, ...]:
    """What was there, without what is gone, and with what is new in its place."""
    there = {*gone, *(getattr(each, name) for each in more)}
    return (*(each for each in before if getattr(each, name) not in there), *more)
