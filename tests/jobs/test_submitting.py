"""What a job may not be asked to hold."""

from pathlib import Path

import pytest

from tapster.contract.errors import TapsterError
from tapster.core.db import Database
from tapster.jobs import service


@pytest.mark.parametrize(
    ("spec", "priority"),
    [({"x": float("nan")}, 0), ({"x": "\ud800"}, 0), ({"x": float("inf")}, 0), ({}, 2**63)],
)
def test_what_no_database_gives_back(
    tmp_path: Path, spec: dict[str, object], priority: int
) -> None:
    db = Database(f"sqlite:///{tmp_path / 'x.db'}")
    db.migrate()
    with pytest.raises(TapsterError) as caught, db.write() as tx:
        service.submit(tx, "default", kind="any", spec=spec, priority=priority)
    assert caught.value.code == "invalid"
    with db.read() as tx:
        assert service.listing(tx, "default") == []
    db.close()
