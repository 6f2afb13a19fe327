"""The shared counters: who writes where, what survives, what is bounded."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tapster.contract.errors import TapsterError
from tapster.serving import slots as layout
from tapster.serving.labels import PLACES
from tapster.serving.slots import Slots
from tapster.serving.work import LARGE_ANSWER, deliver
from tests.serving.doubles import Asked, Counted


def test_totals_cumulate_over_workers_and_their_successors(tmp_path: Path) -> None:
    path, bill = tmp_path / "slots", Counted()
    for index in (0, 3, 3):
        mapped = Slots(path)
        region = mapped.region(index)
        region.start(os.getpid())
        place = region.place(mapped.place("default", "sum", "1"))
        for status in (200, 400, 503):
            asked = Asked(*range(5))
            asked.place, asked.began, asked.account = place, 0, bill
            region.answered(asked, status, 2_000_000)
        mapped.close()
    mapped = Slots(path)
    assert mapped.places() == [
        (0, 0, "", "other", ""),
        (1, 1, "default", "sum", "1"),
    ]
    assert (bill.requests, bill.rows, bill.errors) == (3, 15, 6)
    assert list(mapped.regions()) == [0, 3]
    assert mapped.state(3, layout.STARTS) == 2
    words, place = mapped.words, mapped.region(3).place(1)
    assert [words[place + word] for word in range(4)] == [2, 2, 2, 10]
    assert sum(words[place + layout.LATENCY_BUCKETS + bucket] for bucket in range(16)) == 6
    mapped.close()


def test_another_process_sees_labels_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    mapped = Slots(path)
    code = (
        "import sys; from pathlib import Path; from tapster.serving.slots import Slots;"
        "s = Slots(Path(sys.argv[1])); r = s.region(1); r.start(1);"
        "r.count(r.place(s.place('t', 'a', '1')), 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert mapped.place("t", "b", "1") == 2
    assert mapped.place("t", "a", "1") == 1
    assert mapped.totals(1)[layout.OK] == 1
    mapped.close()


def test_labels_are_bounded(tmp_path: Path) -> None:
    mapped = Slots(tmp_path / "slots")
    numbers = [mapped.place("default", str(number), "") for number in range(PLACES + 50)]
    assert numbers[: PLACES - 1] == list(range(1, PLACES))
    assert set(numbers[PLACES - 1 :]) == {0}
    assert mapped.place("t", "x" * 1000, "1") == 0
    assert len(mapped.places()) == PLACES
    mapped.close()


def test_a_file_of_another_layout_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    for content in (b"", b"short", os.urandom(layout.FILE_BYTES)):
        path.write_bytes(content)
        mapped = Slots(path)
        assert mapped.regions() == {}
        mapped.close()
    assert path.stat().st_size == layout.FILE_BYTES


def test_a_heart_that_stops_is_noticed(tmp_path: Path) -> None:
    mapped = Slots(tmp_path / "slots")
    assert not mapped.stalled(0, 0.0)
    mapped.region(0).start(1)
    assert not mapped.stalled(0, 10.0)
    mapped.words[mapped.region(0).offset + layout.HEARTBEAT] = time.monotonic_ns() - 11 * 10**9
    assert mapped.stalled(0, 10.0)
    mapped.close()


def test_a_large_answer_is_counted_once_there_is_memory_for_it(tmp_path: Path) -> None:
    mapped = Slots(tmp_path / "slots")
    region = mapped.region(0)
    region.start(os.getpid())
    small, given, withheld = Asked(1), Asked(1, 2), Asked(1, 2, 3)
    for asked in (small, given, withheld):
        asked.place = region.nowhere
    withheld.withheld = TapsterError("unavailable", "no room")
    large = b"x" * (LARGE_ANSWER + 1)
    deliver(region, [(small, b"y"), (given, large), (withheld, large)], time.monotonic_ns(), 600)
    assert (small.body, given.body, withheld.body) == (b"y", large, b"")
    assert withheld.error is withheld.withheld
    bills = [each.account for each in (small, given, withheld)]
    assert [bill.requests for bill in bills if isinstance(bill, Counted)] == [1, 1, 0]
    assert [bill.compute for bill in bills if isinstance(bill, Counted)] == [100, 200, 0]
    counts = mapped.totals(0)
    assert (counts[layout.OK], counts[layout.ROWS], counts[layout.UNAVAILABLE]) == (2, 3, 1)
    mapped.close()


def test_everybody_pays_for_their_own(tmp_path: Path) -> None:
    region = Slots(tmp_path / "slots").region(0)
    mine, theirs = Counted(), Counted()
    asked = [Asked(1), Asked(1, 2), Asked(1, 2, 3)]
    for each, bill in zip(asked, (mine, theirs, mine), strict=True):
        each.place, each.account = region.nowhere, bill
    now = time.monotonic_ns()
    region.served(asked, now, now, 600)
    assert (mine.requests, mine.rows, mine.compute) == (2, 4, 400)
    assert (theirs.requests, theirs.rows, theirs.compute) == (1, 2, 200)
