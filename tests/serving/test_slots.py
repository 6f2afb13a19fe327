"""The shared counters: who writes where, what survives, what is bounded."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tapster.serving import slots as layout
from tapster.serving.slots import Slots


def test_totals_cumulate_over_workers_and_their_successors(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    for index in (0, 3, 3):
        mapped = Slots(path)
        region = mapped.region(index)
        region.start(os.getpid())
        place = region.place(mapped.place("default", "sum", "1"))
        series = region.series(mapped.series("ep", "key"))
        region.answered(place, series, 200, 5, 2_000_000)
        region.answered(place, series, 400, 5, 2_000_000)
        region.answered(place, series, 503, 5, 2_000_000)
        mapped.close()
    mapped = Slots(path)
    assert mapped.places() == [(0, "", "other", ""), (1, "default", "sum", "1")]
    assert mapped.usage() == [("ep", "key", 9, 15, 6)]
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
        "r.answered(r.place(s.place('t', 'a', '1')), r.series(s.series('a', 'k')), 200, 1, 1)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert mapped.place("t", "b", "1") == 2
    assert mapped.place("t", "a", "1") == 1
    assert mapped.usage() == [("a", "k", 1, 1, 0)]
    mapped.close()


def test_labels_are_bounded(tmp_path: Path) -> None:
    mapped = Slots(tmp_path / "slots")
    numbers = [mapped.place("default", str(number), "") for number in range(layout.PLACES + 50)]
    assert numbers[: layout.PLACES - 1] == list(range(1, layout.PLACES))
    assert set(numbers[layout.PLACES - 1 :]) == {0}
    assert mapped.place("t", "x" * 1000, "1") == 0
    assert len(mapped.places()) == layout.PLACES
    mapped.close()


def test_a_file_of_another_layout_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    for content in (b"", b"short", os.urandom(layout.FILE_BYTES)):
        path.write_bytes(content)
        mapped = Slots(path)
        assert mapped.regions() == {}
        assert mapped.usage() == []
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


def test_what_was_served_and_not_given_is_an_error_and_not_billed(tmp_path: Path) -> None:
    class Asked:
        place, series, rows, began = 0, 0, 9, 0
        tenant = "default"

        def identify(self) -> str:
            return ""

    mapped = Slots(tmp_path / "slots")
    region = mapped.region(0)
    region.start(os.getpid())
    asked = Asked()
    asked.place = region.place(mapped.place("default", "sum", "1"))
    asked.series = region.series(mapped.series("ep", "key"))
    region.served([asked], 2_000, 1_000, 500)
    region.withheld(asked)
    assert mapped.usage() == [("ep", "key", 1, 0, 1)]
    counts = mapped.totals(1)
    assert counts[layout.OK] == counts[layout.ROWS] == 0
    assert counts[layout.SERVER_ERRORS] == counts[layout.UNAVAILABLE] == 1
    mapped.close()
