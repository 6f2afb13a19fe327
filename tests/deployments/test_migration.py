"""Endpoints of an earlier release go on serving."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from tapster.core.db import Database
from tapster.deployments import service


def test_what_served_alone_is_a_set_of_one(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'tapster.db'}")
    config = Config()
    config.set_main_option("script_location", "tapster.core:migrations")
    with db.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
    held = '{"model": "m", "version": 2, "alias": "best", "digest": "d"}'
    with db.write() as tx:
        tx.execute(
            sa.text(
                "INSERT INTO endpoints (id, tenant, name, status, phase, revision, serving,"
                " created, updated) VALUES ('ep', 'default', 'e', 'live', '', 1, :held, 0, 0)"
            ),
            {"held": held},
        )
    db.migrate()
    with db.read() as tx:
        endpoint = service.show(tx, "default", "e")
        (planned,) = service.plan(tx, "key").endpoints
    db.close()
    assert endpoint.serving is not None
    assert (endpoint.serving["version"], endpoint.serving["alias"]) == (2, "best")
    assert (endpoint.pending, endpoint.previous, endpoint.rollout) == (None, None, None)
    assert [(v.version, v.weight) for v in planned.variants] == [(2, 1.0)]
