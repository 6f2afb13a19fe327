"""A closed-loop load generator: N connections, one request at a time each, over HTTP or gRPC.

`python benchmarks/load.py PLAN.json` prints one JSON object, or a list of them for a list of plans,
which are carried out at the same time. It must be far faster than what it
measures: requests are bytes made beforehand, answers are framed and nothing more, every status is
checked, and one answer in `check_every` is parsed and compared with the model's own scores.
"""

import asyncio
import json
import os
import sys
import time
from array import array
from base64 import b64decode
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

HERE: Final = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from benchmarks import http2, wires  # noqa: E402 - found from the line above

SCORE_TOLERANCE: Final = 1e-4
_LENGTH: Final = b"\r\ncontent-length:"
_SHOWN: Final = 300


@dataclass(frozen=True)
class Plan:
    """What to send where. `expected[i]` are the scores that `bodies[i]` must be answered with.

    `bodies` are in base64: whole HTTP requests, or messages of a gRPC method that is called with
    the metadata in `headers`. `output` names the tensor that holds the scores; empty where any
    answer will do. `cpu` is the core to stay on; `server` the process whose tree's processor time
    is measured. So many `quantiles` of the latencies are reported, at equal distances.
    """

    wire: str
    host: str
    port: int
    bodies: list[str]
    expected: list[list[float]]
    output: str
    headers: dict[str, str] = field(default_factory=dict)
    connections: int = 32
    warm_up: float = 1.0
    seconds: float = 5.0
    check_every: int = 16
    cpu: int | None = None
    server: int | None = None
    quantiles: int = 0


class Tally:
    """What all connections saw. Latencies are kept only while `counting`."""

    def __init__(self, plan: Plan, ended: asyncio.Event) -> None:
        self.plan = plan
        self.requests = [b64decode(body) for body in plan.bodies]
        self.counting = False
        self.stopping = False
        self.latencies = array("d")
        self.answered = 0
        self.checked = 0
        self.errors = 0
        self.first_error = ""
        self.open = 0
        self._ended = ended

    def wrong(self, what: str) -> None:
        """Count an error; the first is kept for the report."""
        self.errors += 1
        self.first_error = self.first_error or what[:_SHOWN]

    def closed(self) -> None:
        """A connection is gone."""
        self.open -= 1
        if not self.open:
            self._ended.set()

    def take(self, head: bytes, body: bytes, case: int, sent: float) -> None:
        """Count a good answer to request `case`; check one in `check_every`."""
        if self.counting:
            self.latencies.append(time.perf_counter() - sent)
        self.answered += 1
        if self.answered % self.plan.check_every == 0 and self.plan.output:
            self._check(head, body, case)

    def _check(self, head: bytes, body: bytes, case: int) -> None:
        """Compare an answer with the model's own scores."""
        self.checked += 1
        try:
            got = wires.read(self.plan.wire, head, body, self.plan.output)
        except (ValueError, LookupError, TypeError) as error:
            self.wrong(f"not an inference answer ({error!r}): {body!r}")
            return
        wanted = self.plan.expected[case]
        near = zip(got, wanted, strict=False)
        if len(got) != len(wanted) or any(abs(a - b) > SCORE_TOLERANCE for a, b in near):
            self.wrong(f"wrong scores: {got} instead of {wanted}")


class Connection(asyncio.Protocol):
    """One HTTP caller: sends the next request as soon as the answer to the last is whole."""

    def __init__(self, tally: Tally, first: int) -> None:
        self._tally = tally
        self._requests = tally.requests
        self._case = first
        self._buffer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        # uvloop's transports do not descend from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._tally.open += 1
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Servers must not close: every request is sent with keep-alive."""
        if not self._tally.stopping:
            self._tally.wrong(f"the server closed a connection: {exc!r}")
        self._tally.closed()

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer; once it is whole, count it and go on."""
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        whole = _whole(data, end) if end > 0 else len(data) + 1
        if len(data) < whole:
            self._buffer = data
            return
        self._buffer = b""
        tally = self._tally
        if data[9:12] != b"200" or len(data) != whole:
            tally.wrong(repr(data))
        else:
            tally.take(data[:end], data[end + 4 :], self._case, self._sent)
        if tally.stopping:
            self._transport.close()
            return
        self._case += 1
        if self._case == len(self._requests):
            self._case = 0
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._requests[self._case])


def _whole(data: bytes, end: int) -> int:
    """The length of an answer whose head ends at `end`; without a Content-Length none is right."""
    head = data[: end + 2].lower()
    start = head.find(_LENGTH)
    if start < 0:
        return 0
    start += len(_LENGTH)
    return end + 4 + int(head[start : head.index(b"\r", start)])


async def drive_all(plans: list[Plan]) -> list[dict[str, Any]]:
    """Run plans at the same time."""
    return await asyncio.gather(*map(drive, plans))


async def drive(plan: Plan) -> dict[str, Any]:
    """Run the plan: warm up, count for `seconds`, let the last answers come, and sum up."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    tally = Tally(plan, ended)
    kind: Any = http2.Connection if plan.wire == "grpc" else Connection
    for index in range(plan.connections):
        connection = partial(kind, tally, index * 7 % len(plan.bodies))
        await loop.create_connection(connection, plan.host, plan.port)
    await asyncio.sleep(plan.warm_up)
    used = tree_seconds(plan.server)
    began, cpu = time.perf_counter(), time.process_time()
    tally.counting = True
    await asyncio.sleep(plan.seconds)
    tally.counting = False
    took, busy = time.perf_counter() - began, time.process_time() - cpu
    used = tree_seconds(plan.server) - used
    tally.stopping = True
    try:
        await asyncio.wait_for(ended.wait(), 30)
    except TimeoutError:
        tally.wrong(f"{tally.open} requests were never answered")
    return summary(tally, took, busy, used)


def tree_seconds(root: int | None) -> float:
    """Processor time, in seconds, that a process and its descendants have used so far."""
    if root is None:
        return 0.0
    import psutil

    found = psutil.Process(root)
    times = [one.cpu_times() for one in (found, *found.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def summary(tally: Tally, took: float, busy: float, used: float) -> dict[str, Any]:
    """Requests a second, latencies in milliseconds, errors, how busy the generator was, and the
    server's processor time a request in microseconds (which other load on the machine, unlike
    the rest, hardly touches)."""
    ordered = sorted(tally.latencies)
    count = tally.plan.quantiles

    def percentile(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1e3 if ordered else 0.0

    return {
        "quantiles_ms": [round(percentile((at + 0.5) / count), 3) for at in range(count)],
        "requests": len(ordered),
        "answered": tally.answered,
        "rate": len(ordered) / took,
        "p50_ms": percentile(0.5),
        "p99_ms": percentile(0.99),
        "max_ms": percentile(1.0),
        "cpu_us": used / len(ordered) * 1e6 if ordered else 0.0,
        "checked": tally.checked,
        "errors": tally.errors,
        "first_error": tally.first_error,
        "generator_busy": busy / took,
    }


def main(path: Path) -> int:
    """Run the plan in a file, or all of them; 0 unless something was answered wrongly."""
    import uvloop

    given = json.loads(path.read_text())
    plans = [Plan(**one) for one in (given if isinstance(given, list) else [given])]
    if plans[0].cpu is not None:
        os.sched_setaffinity(0, {plans[0].cpu})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(drive_all(plans))
    print(json.dumps(results if isinstance(given, list) else results[0]))
    return 1 if any(result["errors"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
