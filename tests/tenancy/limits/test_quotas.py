"""Storage, training time, jobs: refused with the limit's name, and nothing is half done."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tapster.app import open_parts
from tapster.contract.control import Job
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.jobs import service as jobs
from tapster.jobs import store as job_rows
from tapster.tenancy.limits import quotas, spans, storage, store
from tests.tenancy.limits.conftest import Bench


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    """A new installation's parts."""
    made = open_parts(load({}, home=tmp_path))
    yield made
    made.db.close()


@pytest.fixture
def home(parts: Parts) -> Bench:
    """Limits over that installation."""
    return Bench(parts.db)


def submit(bench: Bench) -> Job:
    """Queue a job of acme."""
    with bench.db.write() as tx:
        return jobs.submit(tx, "acme", kind="any", spec={})


def test_jobs_at_once(bench: Bench) -> None:
    bench.limit("jobs", 2)
    first, _ = submit(bench), submit(bench)
    with pytest.raises(TapsterError) as caught:
        submit(bench)
    assert caught.value.code == "exhausted"
    assert "limit of jobs: 2 of 2 jobs at once are used" in caught.value.message
    with bench.db.write() as tx:
        assert jobs.unfinished(tx, "acme") == 2
        jobs.submit(tx, "other", kind="any", spec={})
        jobs.cancel(tx, "acme", first.id)
    submit(bench)


def test_of_many_that_come_at_once_only_so_many_jobs_are_made(bench: Bench) -> None:
    bench.limit("jobs", 3)
    together = threading.Barrier(6)

    def ask(_: int) -> str:
        together.wait()
        try:
            submit(bench)
        except TapsterError as error:
            return error.code
        return "made"

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(ask, range(6))) == ["exhausted"] * 3 + ["made"] * 3


class Training:
    """Training jobs of acme, without the training."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def submit(self, least: float, most: float) -> Job:
        """Queue one that takes from `least` to `most` seconds."""
        with self.bench.db.write() as tx:
            seconds = quotas.allowance(tx, "acme", least, most)
            job = jobs.submit(tx, "acme", kind="train", spec={}, time_limit=seconds)
            quotas.reserve(tx, "acme", job.id, seconds)
        return job

    def lasts(self, seconds: float, error: TapsterError | None = None) -> Job:
        """The next job runs for so long, and then fails or ends well."""
        with self.bench.db.write() as tx:
            claimed = job_rows.claim(tx, "me", 30)
            assert claimed is not None
            job, token = claimed
            assert job.started is not None
            started = Job(**{**vars(job), "started": time.time() - seconds})
            if error is not None:
                assert jobs.fail(tx, started, token, error)
            else:
                assert jobs.succeed(tx, started, token, {})
            return jobs.show(tx, "acme", job.id)

    def account(self) -> tuple[int, int]:
        """Whole seconds used, and held besides."""
        with self.bench.db.read() as tx:
            used, rest = store.trained(tx, "acme", spans.today(), spans.today())
        return used // 10**9, -(-rest // 10**9)


def test_training_time_is_set_aside_and_settled(bench: Bench) -> None:
    training = Training(bench)
    bench.limit("training", 1000, "day")
    assert training.submit(60, 240).time_limit == 240
    assert training.submit(60, 5000).time_limit == 760, "what is left"
    assert training.account() == (0, 1000)
    with pytest.raises(TapsterError) as caught:
        training.submit(60, 240)
    assert caught.value.code == "exhausted"
    assert "limit of training: 1,000 of 1,000 seconds a day are used" in caught.value.message
    assert 0 < caught.value.retry_after <= 86400
    training.lasts(100)
    assert training.account() == (100, 760)
    training.lasts(900)
    assert training.account() == (860, 0), "never more than was set aside"
    assert training.submit(60, 240).time_limit == pytest.approx(140, abs=1)


def test_another_try_has_what_the_first_has_left(bench: Bench) -> None:
    training = Training(bench)
    bench.limit("training", 1000, "month")
    job = training.submit(60, 300)
    again = training.lasts(100, TapsterError("unavailable", "gone"))
    assert (again.status, round(again.time_limit or 0)) == ("queued", 200)
    assert training.account() == (100, 200)
    with bench.db.write() as tx:
        jobs.cancel(tx, "acme", job.id)
    assert training.account() == (100, 0)


def test_time_without_a_limit_counts_once_there_is_one(bench: Bench) -> None:
    training = Training(bench)
    assert training.submit(60, 240).time_limit is None
    training.lasts(300)
    assert training.account() == (300, 0)
    bench.limit("training", 350, "day")
    with pytest.raises(TapsterError):
        training.submit(60, 240)


async def _pieces(size: int, piece: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, size, piece):
        yield b"x" * min(piece, size - at)
        await asyncio.sleep(0)


def send(parts: Parts, *sizes: int) -> list[bool]:
    """Send files at once; which came in."""

    async def one(upload: str, number: int, size: int) -> bool:
        try:
            await storage.receive(parts, "acme", upload, f"f{number}", _pieces(size))
        except TapsterError as error:
            if error.code == "exhausted" and "limit of storage" in error.message:
                return False
            raise
        return True

    async def everything() -> list[bool]:
        upload = parts.uploads.create("acme")
        return await asyncio.gather(*(one(upload, n, size) for n, size in enumerate(sizes)))

    return asyncio.run(everything())


def test_files_that_do_not_fit_do_not_come_in(parts: Parts, home: Bench) -> None:
    home.limit("storage", 50_000)
    assert send(parts, 30_000) == [True]
    assert send(parts, 30_000) == [False]
    assert parts.uploads.size("acme") == 30_000, "nothing of it is left"
    assert send(parts, 20_000) == [True]
    assert send(parts, 1) == [False]
    with parts.db.write() as tx, pytest.raises(TapsterError):
        storage.check(tx, parts, "acme")
    assert parts.landing.of("acme") == 0


def test_of_files_that_come_at_once_only_those_that_fit_together(parts: Parts, home: Bench) -> None:
    home.limit("storage", 50_000)
    assert sum(send(parts, *[20_000] * 8)) == 2
    assert parts.uploads.size("acme") == 40_000


def test_what_a_job_made_takes_the_place_of_what_it_was_made_from(
    parts: Parts, home: Bench
) -> None:
    home.limit("storage", 50_000)
    assert send(parts, 40_000) == [True]
    with pytest.raises(TapsterError), storage.landing(parts, "acme", 30_000):
        pass
    with storage.landing(parts, "acme", 30_000, leaving=40_000):
        with pytest.raises(TapsterError), storage.landing(parts, "acme", 30_000, leaving=40_000):
            pass
        assert parts.landing.of("acme") == 30_000
    assert parts.landing.of("acme") == 0
    with storage.landing(parts, "other", 1 << 40):
        pass
