"""What it costs to watch a worker: processor time a request with logs and traces, and scrapes.

`python benchmarks/watching.py [--seconds S] [--rounds N]` prints medians over rounds: processor
time of the worker a request, with nothing but counters, with lines for a share of requests, and
with traces of a share, sent to a collector that takes them; then how long a scrape of a worker with
1,000 endpoints in use takes, and what it does to a caller beside it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from benchmarks import planes, wires  # noqa: E402 - found from the line above
from benchmarks.load import Plan  # noqa: E402
from benchmarks.planes import Plane  # noqa: E402

ENDPOINTS: Final = 1000
SCRAPES: Final = 20


@contextmanager
def collector() -> Iterator[str]:
    """Takes what is sent and forgets it; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def request(row: Any, endpoint: int = 0) -> bytes:
    """A request of one row."""
    body, headers = wires.spell("json", "", "numeric", row)
    path = wires.infer_path(f"m{endpoint}")
    return wires.http_request(path, "127.0.0.1", {**headers, **planes.HEADERS}, body, {})


def microseconds(folder: Path, options: argparse.Namespace, **settings: str) -> float:
    """Processor time of a worker a request, under load, with these settings."""
    model, rows = planes.linear(folder)
    log = (folder / "log").open("wb")
    with log, Plane(folder / "home", 0, settings, log=log) as plane:
        plane.plan(plane.packages(model, rows, 1))
        plane.start()
        plane.applied()
        plan = Plan(
            wire="json",
            host="127.0.0.1",
            port=plane.port,
            bodies=[b64encode(request(rows[:1])).decode()],
            expected=[],
            output="",
            warm_up=0.5,
            seconds=options.seconds,
            cpu=1,
            server=plane.pids[0],
        )
        (folder / "plan.json").write_text(json.dumps(asdict(plan)))
        done = subprocess.run(
            [sys.executable, HERE / "load.py", folder / "plan.json"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return float(found["cpu_us"])


def compare(options: argparse.Namespace) -> None:
    """Processor time a request with each way of watching."""
    with collector() as url:
        ways: dict[str, dict[str, str]] = {
            "counters only": {},
            "a line for 1 % of requests": {"access_log": "0.01"},
            "a line for every request": {"access_log": "1"},
            "traces of 1 % of requests": {"otel_endpoint": url, "otel_sample": "0.01"},
            "traces of 10 % of requests": {"otel_endpoint": url, "otel_sample": "0.1"},
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, settings in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    spent = microseconds(Path(folder), options, log_level="info", **settings)
                    found[name].append(spent)
    for name, values in found.items():
        print(f"{name:28} {statistics.median(values):6.1f} us a request")


def scrape(folder: Path) -> None:
    """A worker with many endpoints, all called: times of scrapes, and of calls beside them."""
    model, rows = planes.linear(folder)
    with Plane(folder / "home", 0) as plane:
        (package,) = plane.packages(model, rows, 1)
        plane.plan([package] * ENDPOINTS)
        plane.start()
        plane.applied()
        line = HTTPConnection("127.0.0.1", plane.port)
        body, headers = wires.spell("json", "", "numeric", rows[:1])
        sent = {**headers, **planes.HEADERS}

        def call(endpoint: int) -> float:
            began = time.perf_counter()
            line.request("POST", wires.infer_path(f"m{endpoint}"), body, sent)
            assert line.getresponse().read()
            return time.perf_counter() - began

        for endpoint in range(ENDPOINTS):
            call(endpoint)
        alone = sorted(call(0) for _ in range(2000))
        times, sizes = [], []
        stop = threading.Event()
        beside: list[float] = []
        caller = threading.Thread(target=lambda: beside.extend(iter_calls(call, stop)))
        caller.start()
        for _ in range(SCRAPES):
            began = time.perf_counter()
            sizes.append(len(page(plane.port)))
            times.append(time.perf_counter() - began)
            time.sleep(0.1)
        stop.set()
        caller.join()
    beside.sort()
    middle = statistics.median(times) * 1e3
    print(f"a scrape of {ENDPOINTS} endpoints: {middle:.0f} ms, {sizes[-1] / 1e6:.1f} MB")
    for name, calls in (("alone", alone), ("beside scrapes", beside)):
        p50, p99 = (calls[int(len(calls) * share)] * 1e3 for share in (0.5, 0.99))
        print(f"a caller {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def iter_calls(call: Any, stop: threading.Event) -> Iterator[float]:
    """Calls one after another, until told to stop; the time of each."""
    while not stop.is_set():
        yield call(0)


def page(port: int) -> bytes:
    """The metrics page."""
    line = HTTPConnection("127.0.0.1", port)
    line.request("GET", "/metrics", headers=planes.HEADERS)
    found = line.getresponse().read()
    line.close()
    return found


def main() -> int:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    compare(options)
    with tempfile.TemporaryDirectory() as folder:
        scrape(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
