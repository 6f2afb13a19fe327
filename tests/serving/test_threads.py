"""Threads: made at need, used again, ended when idle, and no job lost between."""

import threading
import time
from collections.abc import Callable

from tapster.serving.threads import Threads

LIMIT = 20.0


def wait_for(check: Callable[[], object]) -> None:
    ends = time.monotonic() + LIMIT
    while not check():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_one_thread_does_what_comes_one_after_another() -> None:
    threads = Threads("test")
    seen: list[int] = []
    for number in range(50):
        threads.start(lambda number=number: seen.append(number))  # type: ignore[misc]
        wait_for(lambda number=number: len(seen) > number)  # type: ignore[misc]
    assert seen == list(range(50))
    assert threads.count < 10  # a thread that has just ended its job may not be free yet


def test_none_waits_for_another() -> None:
    threads = Threads("test")
    together = threading.Barrier(8, timeout=LIMIT)
    done: list[int] = []

    def job() -> None:
        together.wait()
        done.append(1)

    for _ in range(8):
        threads.start(job)
    wait_for(lambda: len(done) == 8)


def test_idle_threads_end_and_what_a_job_held_is_let_go() -> None:
    threads = Threads("test", idle=0.05)
    held = [threading.Event()]
    ended: list[int] = []

    class Heavy:
        def __call__(self) -> None:
            held[0].wait(LIMIT)

        def __del__(self) -> None:
            ended.append(1)

    threads.start(Heavy())
    held[0].set()
    wait_for(lambda: ended)
    wait_for(lambda: threads.count == 0)


def test_no_job_is_lost_while_threads_come_and_go() -> None:
    threads = Threads("test", idle=0.001)
    seen: list[int] = []
    for number in range(2000):
        threads.start(lambda number=number: seen.append(number))  # type: ignore[misc]
        if number % 7 == 0:
            time.sleep(0.001)
    wait_for(lambda: len(seen) == 2000)
    wait_for(lambda: threads.count == 0)
