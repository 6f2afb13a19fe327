"""What starting costs: importing, `tapster --help`, `tapster up`, and its memory when idle.

Times are wall clock. Memory is the sum over `tapster up` and all its children after five idle
seconds: PSS (shared pages divided among those that share them) against the goal, and RSS, which
counts shared pages once a process. Exit code 0 if every goal is met, 1 if not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

REPEATS: Final = 7
IDLE_SECONDS: Final = 5.0
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 40.0
TAPSTER: Final = (sys.executable, "-m", "tapster")
PROXYLESS: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Figure:
    """A measured number and what was promised; no goal where it only explains another."""

    name: str
    value: float
    unit: str
    goal: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is met; what has none always is."""
        return self.goal is None or self.value < self.goal

    def __str__(self) -> str:
        text = f"{self.name}: {self.value:,.0f} {self.unit}"
        if self.goal is None:
            return text
        return f"{text} (goal {'met' if self.met else 'NOT MET'}: under {self.goal:,.0f})"


@dataclass(frozen=True)
class Running:
    """A server that answers: its process, and how long it took."""

    pid: int
    seconds: float


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def wall(*command: str) -> float:
    """Seconds that a command takes; it must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def import_time() -> Iterator[Figure]:
    """Importing tapster, without what the bare interpreter takes; the two take turns."""
    bare, ours = [], []
    for _ in range(REPEATS):
        bare.append(wall(sys.executable, "-c", "pass"))
        ours.append(wall(sys.executable, "-c", "import tapster"))
    interpreter = statistics.median(bare)
    extra = max(statistics.median(ours) - interpreter, 0.0)
    yield Figure("import tapster", extra * 1e3, "ms", 100)
    yield Figure("  the bare interpreter", interpreter * 1e3, "ms")


def help_time() -> Figure:
    """`tapster --help`, interpreter and all."""
    times = [wall(*TAPSTER, "--help") for _ in range(REPEATS)]
    return Figure("tapster --help", statistics.median(times) * 1e3, "ms", 300)


@contextmanager
def up(home: Path) -> Iterator[Running]:
    """`tapster up` until it is stopped; entered once control plane and data plane answer."""
    began = time.perf_counter()
    ports = ("--port", "0", "--rest-port", "0", "--grpc-port", "0")
    environment = {name: text for name, text in os.environ.items() if "TAPSTER_" not in name}
    with (home.parent / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [*TAPSTER, "up", "--home", str(home), *ports], env=environment, stdout=log, stderr=log
        )
    try:
        while not answers(home, process.pid):
            late = time.perf_counter() - began > START_SECONDS
            if late or process.poll() is not None:
                tail = (home.parent / "up.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"tapster up did not start:\n{tail}")
            time.sleep(0.01)
        yield Running(process.pid, time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def answers(home: Path, pid: int) -> bool:
    """Whether the control API is healthy and a worker is ready."""
    try:
        running: dict[str, Any] = json.loads((home / "run.json").read_bytes())
        if running["pid"] != pid:
            return False
        for url in (f"{running['url']}/health", f"{running['rest_url']}/v2/health/ready"):
            with PROXYLESS.open(url, timeout=START_SECONDS):
                pass
    except (OSError, ValueError, KeyError):  # HTTP errors are OSErrors
        return False
    return True


def memory(root: int) -> Iterator[Figure]:
    """PSS and RSS of a process and its descendants, in MB of a million bytes."""
    import psutil

    found = psutil.Process(root)
    total = {"Pss": 0, "Rss": 0}
    parts = []
    for one in (found, *found.children(recursive=True)):
        sizes = rollup(one.pid)
        total = {name: total[name] + sizes[name] for name in total}
        words = one.cmdline()
        parts.append(Figure(f"  PSS of {' '.join(words[1:4])}", sizes["Pss"] / 1e6, "MB"))
    yield Figure("idle memory of the whole tree (PSS)", total["Pss"] / 1e6, "MB", 400)
    yield Figure("  the same as RSS", total["Rss"] / 1e6, "MB")
    yield from parts


def rollup(pid: int) -> dict[str, int]:
    """Sizes in bytes from /proc/PID/smaps_rollup (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    pairs = (line.split()[:2] for line in lines)
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes in pairs}


def measure() -> Iterator[Figure]:
    """Every figure, as soon as it is known."""
    yield from import_time()
    yield help_time()
    with tempfile.TemporaryDirectory(prefix="tapster-startup-") as name:
        home = Path(name) / "home"
        with up(home) as first:
            yield Figure("tapster up, a new home", first.seconds * 1e3, "ms", 3000)
        again = []
        for _ in range(2):
            with up(home) as later:
                again.append(later.seconds)
        with up(home) as later:
            again.append(later.seconds)
            yield Figure(
                "tapster up, the same home again", statistics.median(again) * 1e3, "ms", 3000
            )
            time.sleep(IDLE_SECONDS)
            yield from memory(later.pid)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(arguments)
    if (load := os.getloadavg()[0]) > 0.5:
        say(f"warning: the machine is not quiet (load {load:.1f})")
    figures = []
    for figure in measure():
        figures.append(figure)
        say(str(figure)) if options.json else print(figure, flush=True)
    if options.json:
        print(json.dumps([{**vars(one), "met": one.met} for one in figures], indent=2))
    return 0 if all(one.met for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
