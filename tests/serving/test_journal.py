"""What is counted survives its worker, changes together, and is found by whoever bills."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.usage import Line
from tapster.serving import journal as layout
from tapster.serving.extents import FIRST, LARGEST, Extents
from tapster.serving.journal import Journal, Label, spelled, today
from tapster.serving.segments import Found, found

LABEL = Label("acme", "key_1", "default", "ep_1", "sum", "made", "3", price="pri_1")


def label(number: int, budgets: tuple[tuple[str, str], ...] = ()) -> Label:
    return Label("acme", f"key_{number}", "default", "ep_1", "sum", "made", "3", budgets)  # type: ignore[arg-type]


def only(home: Path) -> Found:
    segments = found(home)
    assert len(segments) == 1
    return segments[0]


def test_counts_are_found_by_others(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", 5)
    record = journal.record(LABEL)
    record.served(2, 7, 1000)
    record.served(1, 1, 10, cached=1, charged=30)
    record.failed()
    segment = only(tmp_path)
    assert (segment.day, segment.worker, segment.owned) == (today(), 5, True)
    totals = segment.totals()
    assert totals.tolist() == [[3, 1, 8, 0, 1010, 1, 30, 0]]
    (count,) = segment.counts(totals, [0])
    assert count.line == Line(
        spelled(today()), "acme", "key_1", "default", "ep_1", "sum", "made", "3", "pri_1"
    )
    assert (count.requests, count.errors, count.rows, count.compute, count.cached) == (
        3, 1, 8, 1010, 1,
    )  # fmt: skip
    journal.close()
    assert not segment.owned


def test_there_is_room_for_every_key(tmp_path: Path) -> None:
    """A hundred thousand keys, each with its own record, in a file that grows."""
    keys = 100_000
    journal = Journal(tmp_path / "run", 0)
    reader = only(tmp_path)
    for number in range(keys):
        journal.record(label(number)).served(1, number, 0)
        if number % 20_000 == 0:
            assert len(reader.totals()) == number + 1  # reading goes on where it stopped
    totals = reader.totals()
    assert totals[:, layout.ROWS].tolist() == list(range(keys))
    chosen = [0, 1, 777, 54_321, keys - 1]
    assert [found.key for _, found in reader.labels(chosen)] == [f"key_{n}" for n in chosen]
    assert reader.path.stat().st_size < 400 * keys
    began = time.process_time()
    reader.totals()
    assert time.process_time() - began < 1.0


def test_the_same_label_has_one_record_a_day(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", 0)
    assert journal.record(label(1)) is journal.record(label(1))
    assert journal.record(label(1)) is not journal.record(label(1, (("lim_1", "rows"),)))


def test_another_day_is_another_segment(tmp_path: Path) -> None:
    day = 20_000
    journal = Journal(tmp_path / "run", 0, clock=lambda: day)
    journal.record(LABEL).served(1, 1, 0)
    first = only(tmp_path)
    assert not journal.due()
    day += 1
    assert journal.due()
    assert journal.roll()
    journal.record(LABEL).served(5, 5, 0)
    assert {each.day: int(each.totals()[0, 0]) for each in found(tmp_path)} == {day - 1: 1, day: 5}
    now = time.monotonic()
    journal.settle(now)
    assert first.owned  # what was under way at midnight may still be counted there
    journal.settle(now + layout.SETTLING_SECONDS + 1)
    assert not first.owned


def test_a_segment_waits_for_those_that_are_counted_there(tmp_path: Path) -> None:
    day = 20_000
    journal = Journal(tmp_path / "run", 0, clock=lambda: day)
    record = journal.record(LABEL)
    record.segment.holds += 1
    day += 1
    journal.roll()
    later = time.monotonic() + 2 * layout.SETTLING_SECONDS
    journal.settle(later)
    assert not record.segment.sealed
    record.served(1, 1, 0)
    record.segment.holds -= 1
    journal.settle(later)
    assert record.segment.sealed


def test_a_complete_day_is_never_counted_on_again(tmp_path: Path) -> None:
    """The clock goes back a day; what is counted now is of the first day that may still be."""
    day = 20_000
    journal = Journal(tmp_path / "run", 0, floor=lambda: 20_000, clock=lambda: day)
    day -= 1
    assert not journal.due()
    assert journal.record(LABEL).segment.day == 20_000
    assert Journal(tmp_path / "run", 0, floor=lambda: 20_000, clock=lambda: day).day == 20_000


def test_without_room_nothing_is_served_and_then_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = False
    grow = Extents.grow

    def limited(extents: Extents) -> object:
        if full:
            raise OSError(errno.ENOSPC, "no space left")
        return grow(extents)

    monkeypatch.setattr(Extents, "grow", limited)
    full = True
    journal = Journal(tmp_path / "run", 0)
    with pytest.raises(TapsterError, match="no room") as refused:
        journal.record(LABEL)
    assert refused.value.code == "unavailable"
    assert list((tmp_path / "run" / "usage").iterdir()) == []
    assert journal.due()
    full = False
    assert journal.roll()
    journal.record(LABEL).served(1, 1, 1)
    full = True
    with pytest.raises(TapsterError, match="no room"):
        deque(map(journal.record, map(label, range(FIRST))), maxlen=0)
    # Whoever has a record already is counted as before.
    journal.record(LABEL).served(1, 1, 1)
    assert only(tmp_path).totals()[0].tolist()[:3] == [2, 0, 2]


def test_labels_longer_than_an_extent_are_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", 0)
    with pytest.raises(TapsterError):
        journal.record(Label("x" * 2 * LARGEST, "", "", "", "", "", ""))
    journal.record(LABEL).served(1, 1, 1)
    assert int(only(tmp_path).totals()[:, 0].sum()) == 1


WRITER = """
import sys
from pathlib import Path
from tapster.serving.journal import Journal, Label
journal = Journal(Path(sys.argv[1]) / "run", 0)
print("ready", flush=True)
number = 0
while True:
    number += 1
    key, version = f"key_{number % 3000}", str(number % 7)
    record = journal.record(Label("acme", key, "o", "e", "n", "m", version))
    record.served(3, 3 * 11, 3 * 13, cached=3, charged=3 * 17)
    if number % 5 == 0:
        record.failed()
"""


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.1, 0.2, 0.3])
def test_a_kill_leaves_whole_counts(tmp_path: Path, seconds: float) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    segment = only(tmp_path)
    assert segment.owned
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _assert_whole(segment)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not segment.owned
    totals = _assert_whole(segment)
    assert int(totals[:, 0].sum()) > 0
    assert [each.key for _, each in segment.labels([0])] == ["key_1"]
    assert all(each.tenant == "acme" for _, each in segment.labels(range(len(totals))))


def _assert_whole(segment: Found) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]":
    totals = segment.totals()
    requests = totals[:, layout.REQUESTS]
    assert (requests % np.uint64(3) == 0).all()
    assert (totals[:, layout.ROWS] == requests * np.uint64(11)).all()
    assert (totals[:, layout.COMPUTE] == requests * np.uint64(13)).all()
    assert (totals[:, layout.CACHED] == requests).all()
    assert (totals[:, layout.CHARGED] == requests * np.uint64(17)).all()
    return totals


def test_what_is_no_segment_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "usage"
    Journal(tmp_path / "run", 0).close()
    (folder / "empty").write_bytes(b"")
    (folder / "short").write_bytes(b"short")
    (folder / "noise").write_bytes(os.urandom(FIRST))
    (folder / ".half-made").write_bytes(b"")
    assert len(found(tmp_path)) == 1
    assert len(list(folder.iterdir())) == 5


@pytest.mark.parametrize("pages", range(1, 6))
def test_of_what_a_power_failure_left_half_the_rest_is_read(tmp_path: Path, pages: int) -> None:
    """Pages that the kernel had not written yet are zeros; those before them say otherwise."""
    journal = Journal(tmp_path / "run", 0)
    for number in range(100):
        journal.record(label(number, (("lim_1", "rows"),))).served(1, 1, 0)
    journal.close()
    whole = only(tmp_path)
    data, kept = whole.path.read_bytes(), 4096 * pages
    whole.path.write_bytes(data[:kept] + bytes(len(data) - kept))
    torn = only(tmp_path)
    totals = torn.totals()
    assert 0 < len(totals) < 100
    assert torn.spent() == {"lim_1": int(totals[:, layout.ROWS].sum())}
    assert len(torn.counts(totals, range(len(totals)))) == len(totals)


def test_counting_costs_little(tmp_path: Path) -> None:
    """About half a microsecond; a limit that only something quite wrong reaches."""
    record = Journal(tmp_path / "run", 0).record(LABEL)
    began = time.process_time()
    for _ in range(100_000):
        record.served(1, 1, 1)
    assert time.process_time() - began < 2.0


def test_readers_are_not_in_each_others_way(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", 0)
    record = journal.record(LABEL)
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        segment = only(tmp_path)
        while not stop.is_set():
            seen.append(int(segment.totals()[0, 0]))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20_000):
        record.served(1, 1, 1)
    stop.set()
    for thread in threads:
        thread.join()
    assert max(seen) <= 20_000
    assert int(only(tmp_path).totals()[0, 0]) == 20_000
