"""Models and requests made for tests of batchers, and a batcher with all it needs."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Signature, TensorSpec
from tapster.runtimes import Stop
from tapster.serving.batcher import Batcher, Means
from tapster.serving.bills import Bill
from tapster.serving.costs import Budget, Cost
from tapster.serving.expiry import Guard
from tapster.serving.slots import Slots
from tapster.serving.threads import Threads
from tapster.serving.work import Answer, Inputs

LIMIT = 20.0


class Double:
    """A LoadedModel that doubles; refuses batches with a negative, and can take its time."""

    signature = Signature(
        inputs=(TensorSpec("x", "FP32", (-1, 1)),), outputs=(TensorSpec("y", "FP32", (-1, 1)),)
    )

    def __init__(self, seconds: float = 0.0) -> None:
        self.sizes: list[int] = []
        self.closed = False
        self.seconds = seconds

    def run(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str],
        deadline: float | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        rows = inputs["x"]
        self.sizes.append(len(rows))
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            if deadline is not None and time.monotonic() > deadline:
                raise TapsterError("deadline", "too late")
            time.sleep(0.001)
        if (rows < 0).any():
            raise TapsterError("invalid", "negative")
        if (rows == 13).any():
            raise ZeroDivisionError
        return [rows * 2]

    def close(self) -> None:
        self.closed = True


class Counted:
    """A Bill that keeps what it was told: requests, rows, compute, cached, errors."""

    meters = None
    till = None

    def __init__(self) -> None:
        self.requests = self.rows = self.compute = self.cached = self.errors = 0

    def served(self, requests: int, rows: int, compute: int, cached: int = 0) -> None:
        self.requests += requests
        self.rows += rows
        self.compute += compute
        self.cached += cached

    def failed(self) -> None:
        self.errors += 1


class Asked:
    """Work that keeps what it was told."""

    def __init__(self, *values: float, deadline: float = 1e12) -> None:
        self.inputs: Inputs = {"x": np.array(values, np.float32).reshape(-1, 1)}
        self.rows = len(values)
        self.deadline = deadline
        self.began = time.monotonic_ns()
        self.place = 0
        self.account: Bill = Counted()
        self.tenant = "default"
        self.done = False
        self.body = b""
        self.error: BaseException | None = None
        self.withheld: TapsterError | None = None

    def identify(self) -> str:
        return "1"

    def render(self, answer: Answer, first: int) -> bytes:
        values, width, _ = answer.columns[0]
        return repr(values[first * width : (first + self.rows) * width]).encode()

    def withhold(self, size: int) -> TapsterError | None:
        return self.withheld

    def succeed(self, body: bytes) -> None:
        self.done, self.body = True, body

    def fail(self, error: BaseException) -> None:
        self.done, self.error = True, error


class Held(Double):
    """A Double whose runs wait until `let` is called for each, whatever their deadline or stop."""

    def __init__(self, signature: Signature | None = None) -> None:
        super().__init__()
        self.signature = signature or Double.signature
        self.stops: list[Stop] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._gate = threading.Semaphore(0)

    def let(self, runs: int = 1) -> None:
        """Let so many runs end."""
        self._gate.release(runs)

    def run(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str],
        deadline: float | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        rows = inputs["x"]
        assert stop is not None
        with self._lock:
            self.stops.append(stop)
            self.sizes.append(len(rows))
            self._now += 1
            self.most = max(self.most, self._now)
        assert self._gate.acquire(timeout=LIMIT)
        with self._lock:
            self._now -= 1
        return [rows * 2]


class Bench:
    """A batcher on a running loop."""

    def __init__(self, folder: Path, model: Double, cost: Cost, *, together: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.region = Slots(folder / "slots").region(0)
        self.late: list[float] = []
        guard = Guard(loop, self.late.append)
        means = Means(Budget(loop, 1.0), self.region, Threads("model"), guard)
        self.batcher = Batcher(model, means, cost, inline=False, together=together)

    def ask(self, *values: float, seconds: float = 1e6, array: Array | None = None) -> Asked:
        """Submit a request with a deadline."""
        asked = Asked(*values, deadline=time.monotonic() + seconds)
        if array is not None:
            asked.inputs, asked.rows = {"x": array}, len(array)
        asked.place = self.region.nowhere
        self.batcher.submit(asked)
        return asked

    def refused(self, *values: float, seconds: float = 1e6) -> TapsterError:
        """What a request is refused with."""
        try:
            self.ask(*values, seconds=seconds)
        except TapsterError as error:
            return error
        raise AssertionError("the request was not refused")

    def counted(self, word: int) -> int:
        """A counter of the place that every request here is of."""
        return self.region.words[self.region.nowhere + word]


async def until(check: Callable[[], object]) -> None:
    """Wait for something, within a limit that only a hang reaches."""
    ends = time.monotonic() + LIMIT
    while not check():
        assert time.monotonic() < ends
        await asyncio.sleep(0.001)


def go(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine."""

    async def whole() -> None:
        await main()

    asyncio.run(whole())
