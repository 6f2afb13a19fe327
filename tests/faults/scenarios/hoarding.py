"""Bodies as large as they may be, many at once; and answers that nobody reads."""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import psutil

from tapster.contract.plan import Options
from tests.faults.scenarios import models
from tests.faults.scenarios.load import Load, cases
from tests.serving.conftest import Plane, endpoint

RATE: Final = 50.0
WIDE: Final = 20_000
NUMBER: Final = b"1.5,"
MIB: Final = 1 << 20


@dataclass
class Hoard:
    """Bytes of the worker's memory before and at most; what the large and the small got."""

    before: int
    most: int = 0
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    small: list[float] = field(default_factory=list)
    small_statuses: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Watched:
    """A worker's resident memory, looked at all the time."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.before = self.most = process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss)


def serve(plane: Plane) -> psutil.Process:
    """A worker with a quick model, and one that says a lot."""
    total = models.seal(plane.home, models.total(0.0))
    wide = models.seal(plane.home, models.wide(WIDE), -1, WIDE)
    plane.plan(endpoint("total", total), endpoint("wide", wide), packages=(total, wide))
    process = psutil.Process(plane.start().pid)
    plane.applied()
    return process


def send_large(plane: Plane, clients: int, size: int) -> Hoard:
    """So many clients send a body of `size` bytes at once, beside a normal one."""
    process, data = serve(plane), _body(size)

    def send(_: int) -> int:
        return plane.call("POST", "/v2/models/total/infer", data).status

    with Watched(process) as memory, Load(plane.port, cases("total"), rate=RATE) as load:
        load.more(50)
        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            statuses = Counter(pool.map(send, range(clients)))
    seen = _told(memory, load, began)
    seen.sent, seen.statuses = clients * len(data), statuses
    return seen


def send_many_rows(plane: Plane, rows: int) -> Hoard:
    """One request of so many rows to a model that makes thousands of numbers of each."""
    package = models.seal(plane.home, models.busy(2))
    plane.plan(endpoint("busy", package, options=Options(deadline=600.0)), packages=(package,))
    process = psutil.Process(plane.start().pid)
    plane.applied()
    data = _body(rows * 3 * len(NUMBER))
    with Watched(process) as memory, Load(plane.port, cases("busy"), rate=RATE) as load:
        load.more(50)
        began = time.monotonic()
        status = plane.call("POST", "/v2/models/busy/infer", data).status
    seen = _told(memory, load, began)
    seen.sent, seen.statuses = len(data), Counter([status])
    return seen


def read_nothing(plane: Plane, clients: int, depth: int, seconds: float) -> Hoard:
    """So many clients ask for long answers, `depth` at once each, and read none of them."""
    process = serve(plane)
    asked = cases("wide")[0].request * depth
    load = Load(plane.port, cases("total"), rate=RATE)
    with ExitStack() as lines, Watched(process) as memory, load:
        load.more(50)
        began = time.monotonic()
        for _ in range(clients):
            line = lines.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", plane.port))
            line.sendall(asked)
        time.sleep(seconds)
    return _told(memory, load, began)


def _told(memory: Watched, load: Load, began: float) -> Hoard:
    return Hoard(
        before=memory.before,
        most=memory.most,
        seconds=time.monotonic() - began,
        small=[answer.took for answer in load.answers if answer.due >= began],
        small_statuses={answer.status for answer in load.answers},
        failures=[*load.wrong, *map(str, load.broken)] + ["refused"] * load.refused,
    )


def _body(size: int) -> bytes:
    """Rows of three numbers, in about so many bytes."""
    rows = size // (3 * len(NUMBER)) - 16
    data = (NUMBER * (3 * rows))[:-1]
    tensor = b'{"name":"numeric","shape":[%d,3],"datatype":"FP32","data":[%b]}' % (rows, data)
    return b'{"inputs":[%b]}' % tensor
