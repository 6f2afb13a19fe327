"""What an agent sends of what workers count: soon, and of what never rests not too often."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from tapster.contract.usage import UsageReceipt
from tapster.serving import collecting
from tapster.serving.collecting import Collector, machine_id
from tapster.serving.journal import Journal, Label

LABEL = Label("acme", "key_1", "default", "ep_1", "sum", "made", "3")
SPENDING = replace(LABEL, budgets=(("lim_1", "requests"),))


def test_a_record_that_never_rests_is_sent_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    journal = Journal(tmp_path / "run", 0)
    record = journal.record(LABEL)
    collector = Collector(tmp_path)
    seen = []
    for second in range(60):
        clock[0] = 1000.0 + 1.05 * second
        if second != 40:
            record.served(1, 10, 5)
        report = collector.report()
        if report.segments:
            [segment] = report.segments
            seen.append((second, segment.counts[0].requests))
            collector.acknowledge(report, UsageReceipt())
    assert seen[0] == (0, 1)
    gaps = [later - before for (before, _), (later, _) in pairwise(seen)]
    assert gaps[:3] == [1, 2, 4]
    assert max(gaps) == collecting.LONGEST_PACE
    assert len(seen) <= 16
    assert max(number for number, _ in seen) < 59
    last = [collector.report(), collector.report()][1].segments[0].counts[0]
    assert last.requests == 59, "what has come to rest is sent at once"
    journal.close()


def test_an_earlier_ledger_is_told_again_by_an_agent_that_has_just_begun(tmp_path: Path) -> None:
    """As the whole system does that is stopped, put back from a backup, and started."""
    journal = Journal(tmp_path / "run", 0)
    journal.record(SPENDING).served(3, 30, 5)
    journal.close()
    before = Collector(tmp_path)
    report = before.report()
    before.acknowledge(report, UsageReceipt((report.segments[0].id,)))
    assert before.report().segments == ()
    successor = Collector(tmp_path)
    [segment] = successor.report().segments
    assert (segment.sealed, segment.counts[0].requests) == (True, 3)


def test_a_ledger_that_knows_another_report_as_the_last_is_told_all_again(tmp_path: Path) -> None:
    """Whatever number its plan has got to by then."""
    journal = Journal(tmp_path / "run", 0)
    journal.record(LABEL).served(3, 30, 5)
    collector = Collector(tmp_path)
    report = collector.report()
    assert report.mark == ""
    collector.acknowledge(report, UsageReceipt(mark="1"))
    journal.record(LABEL).served(1, 10, 5)
    report = collector.report(everything=True)
    assert (report.mark, len(report.segments)) == ("1", 1)
    collector.acknowledge(report, UsageReceipt())  # of a control process that tells no mark
    report = collector.report()
    assert (report.mark, report.segments) == ("1", ())
    collector.acknowledge(report, UsageReceipt(mark="2", again=True))
    report = collector.report()
    assert report.mark == "2"
    assert report.segments[0].counts[0].requests == 4
    journal.close()


def test_a_machine_that_lost_its_counts_is_another_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", 0)
    with ThreadPoolExecutor(8) as threads:
        (known,) = set(threads.map(machine_id, [tmp_path] * 8))
    (tmp_path / "run" / "machine.id").rename(tmp_path / "machine.id")
    assert machine_id(tmp_path) == known, "where it lay in earlier homes"
    journal.close()
    shutil.rmtree(tmp_path / "run")
    journal = Journal(tmp_path / "run", 0)
    assert machine_id(tmp_path) != known, "it cannot know what of its grants it has spent"
    journal.close()
