"""A control plane that grants budgets and takes reports, and planes whose tenants have limits."""

import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from tapster.contract.plan import (
    EndpointPlan,
    LimitGrant,
    PackageRef,
    ServingPlan,
    TenantGrant,
    UsageBatch,
)
from tapster.contract.snapshots import pack
from tapster.contract.usage import Count, Grant, GrantAnswer, GrantRequest, UsageReport
from tapster.serving import planfile
from tests.serving.conftest import AGENT_KEY, KEY, SIGNERS, Plane, grant

COUNTERS = ("requests", "errors", "rows", "tokens", "compute", "cached")


@dataclass
class Ledger:
    """What a control plane owes: exact grants, and totals of what was reported.

    `amounts` are the budgets, `least` what a grant goes beyond what was asked for; `losing` loses
    so many answers, after they have been worked out.
    """

    amounts: dict[str, int] = field(default_factory=dict)
    resets: float = 3600.0
    losing: int = 0
    given: dict[tuple[str, str, str], int] = field(default_factory=dict)
    counts: dict[tuple[str, int], Count] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    open_days: tuple[str, ...] = ()
    asked: int = 0
    reports: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def grant(self, request: GrantRequest) -> GrantAnswer:
        """As the contract has it."""
        found = []
        with self.lock:
            self.asked += 1
            for ask in request.asks:
                amount = self.amounts.get(ask.limit)
                if amount is None:
                    continue
                key = (request.machine, ask.limit, ask.day)
                before = self.given.get(key, 0)
                left = amount - sum(n for (_, limit, _), n in self.given.items() if limit == key[1])
                more = min(max(ask.total - before, 0), left)
                self.given[key] = before + more
                spent = self.given[key] < ask.total
                resets = time.time() + self.resets
                found.append(Grant(ask.limit, ask.day, before + more, spent, resets, left - more))
        return GrantAnswer(tuple(found))

    def take(self, report: UsageReport) -> list[str]:
        """Take a report in; the segments that are here whole."""
        taken = []
        with self.lock:
            self.reports += 1
            self.open_days = report.open_days
            for segment in report.segments:
                assert segment.id not in self.sealed or segment.sealed
                for count in segment.counts:
                    before = self.counts.get((segment.id, count.record), count)
                    assert before.line == count.line
                    for name in COUNTERS:
                        assert getattr(count, name) >= getattr(before, name), (before, count)
                    self.counts[segment.id, count.record] = count
                if segment.sealed:
                    self.sealed.add(segment.id)
                    taken.append(segment.id)
        return taken

    def total(self, name: str, **line: str) -> int:
        """What was reported, of lines with these fields."""
        with self.lock:
            return sum(
                getattr(count, name)
                for count in self.counts.values()
                if all(getattr(count.line, field) == value for field, value in line.items())
            )

    def start(self, port: int = 0) -> int:
        """Answer a machine's agent."""
        ledger = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                time.sleep(0.2)
                self.answer(204, b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/internal/grants":
                    answer = ledger.grant(msgspec.json.decode(body, type=GrantRequest))
                    if ledger.losing:
                        ledger.losing -= 1
                        self.close_connection = True
                        return
                    self.answer(200, msgspec.json.encode(answer))
                    return
                batch = msgspec.json.decode(body, type=UsageBatch)
                taken = ledger.take(batch.ledger) if batch.ledger is not None else []
                self.answer(200, json.dumps({"status": "ok", "taken": taken}).encode())

            def answer(self, status: int, body: bytes) -> None:
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        return int(self.server.server_address[1])

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def limited(
    plane: Plane,
    endpoints: Iterable[EndpointPlan],
    packages: tuple[PackageRef, ...],
    *limits: LimitGrant,
    keys: tuple[Any, ...] = (),
    suspended: bool = False,
) -> None:
    """Give a plane a plan whose only tenant has limits."""
    plane.number += 1
    plan = ServingPlan(
        number=plane.number,
        endpoints=tuple(endpoints),
        packages=packages,
        keys=keys or (grant(KEY),),
        signers=SIGNERS,
        tenants=(TenantGrant("default", limits=limits, suspended=suspended),),
    )
    planfile.save(plane.home / "run", pack(plan), AGENT_KEY)
