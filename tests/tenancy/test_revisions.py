"""Revisions get their numbers in the order of commits, so that who reads in order misses none."""

import threading
import time
from pathlib import Path

import pytest

from tapster.core.db import Database
from tapster.tenancy import revisions


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_who_reads_in_order_misses_none(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'tapster.db'}"
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
    db = Database(url)
    db.migrate()
    with db.read() as tx:
        first = revisions.revision(tx)

    def write(writer: int) -> None:
        for number in range(20):
            with db.write() as tx:
                revisions.revise(tx, "default", "x", kind="key", ref=f"{writer}-{number}")
                time.sleep(0.001 * (writer % 3))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(5)]
    for each in writers:
        each.start()
    seen: list[str] = []
    until = time.monotonic() + 60
    after = first
    while len(seen) < 100:
        assert time.monotonic() < until
        with db.read() as tx:
            found = revisions.history(tx, after, 1000)
        seen += [each.ref for each in found]
        after = found[-1].number if found else after
    for each in writers:
        each.join()
    db.close()
    assert sorted(seen) == sorted(f"{writer}-{n}" for writer in range(5) for n in range(20))
    assert len({each.mark for each in found}) == len(found)
