"""What a line of the record costs a change, and how fast lines are checked.

    python benchmarks/audit.py [DATABASE_URL]

Changes (a trusted key added, and removed) are made in this process over the same database, with and
without the record, in turns; medians in milliseconds. Then every line is checked.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from tapster.app import open_parts
from tapster.contract.audit import Verdict
from tapster.contract.control import Principal
from tapster.core.changes import Witness
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.registry import trust
from tapster.tenancy.audit import service
from tapster.tenancy.audit.acts import Act, current
from tapster.tenancy.audit.record import Record

CHANGES = 150
ROUNDS = 6
KEY = "ab" * 32


def request() -> Act:
    """A request by the admin."""
    return Act(
        scope={
            "type": "http",
            "method": "POST",
            "path": "/api/v1/trust",
            "client": ("127.0.0.1", 1),
            "state": {"principal": Principal("default", "key_admin", frozenset({"*"}))},
            "route": SimpleNamespace(path="/trust", status_code=201),
            "path_params": {"name": "n"},
        }
    )


def changes(parts: Parts, witness: Witness | None) -> tuple[float, float]:
    """Median milliseconds of an insertion and of a deletion."""
    parts.db.witness = witness
    added, removed = [], []
    for _ in range(CHANGES):
        began = time.perf_counter()
        with parts.db.write() as tx:
            trust.trust(tx, "default", "n", KEY)
        between = time.perf_counter()
        with parts.db.write() as tx:
            trust.distrust(tx, "default", "n")
        added.append(between - began)
        removed.append(time.perf_counter() - between)
    return statistics.median(added) * 1e3, statistics.median(removed) * 1e3


def main(url: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        parts = open_parts(load({}, home=Path(folder), database_url=url or None))
        record = parts.db.witness
        assert isinstance(record, Record)
        current.set(request())
        changes(parts, record)
        without, recorded = [], []
        for _ in range(ROUNDS):
            without.append(changes(parts, None))
            recorded.append(changes(parts, record))
        for at, what in enumerate(("insertion", "deletion")):
            plain = statistics.median(each[at] for each in without)
            full = statistics.median(each[at] for each in recorded)
            print(f"{what}: {plain:.2f} ms, recorded {full:.2f} ms: {full - plain:+.2f} ms")
        began = time.perf_counter()
        *_, verdict = service.check(parts.db, record.heads, "*")
        seconds = time.perf_counter() - began
        assert isinstance(verdict, Verdict)
        assert verdict.ok
        print(f"checked {verdict.lines:,} lines: {verdict.lines / seconds:,.0f} a second")
        parts.db.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
