"""Two changes of an endpoint at the same moment, by transactions that are open together."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection

import tapster.app  # noqa: F401 - every slice's tables are registered
from tapster.core.db import Database
from tapster.deployments import service
from tapster.deployments.judgement import Rules
from tapster.deployments.sharing import service as sharing
from tapster.registry import service as registry
from tests.deployments.conftest import NUMBERS, DataPlane, live, register, regression, shown
from tests.tenancy.test_at_once import overlapping


def _delete(tx: Connection) -> list[str]:
    return registry.delete(tx, "default", "m@2", service.in_use, service.lent)


def _deploy(tx: Connection, ref: str = "m@2", name: str = "e") -> object:
    return service.deploy(tx, "default", name, ref)


def _share(tx: Connection) -> object:
    return sharing.share(tx, "default", "e", ["acme"])


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    """A database where writers do not wait for one another; m@1 is live at e."""
    database = Database(postgres_url)
    with database.write() as tx:
        for number in (1, 2, 3):
            register(tx, f"m@{number}", regression(*NUMBERS))
        live(tx, DataPlane(tx), "m@1")
    yield database
    database.close()


@pytest.mark.parametrize(
    ("first", "second", "becomes"),
    [
        (_deploy, lambda tx: _deploy(tx, "m@3"), "conflict"),
        (_deploy, lambda tx: service.set_shadows(tx, "default", "e", ["m@3"]), "conflict"),
        (_deploy, _delete, "conflict"),
        (_delete, _deploy, "not_found"),
        (lambda tx: _deploy(tx, name="new"), _delete, "conflict"),
        (lambda tx: service.delete(tx, "default", "e"), _share, "not_found"),
    ],
)
def test_one_after_the_other(
    postgres: Database,
    first: Callable[[Connection], Any],
    second: Callable[[Connection], Any],
    becomes: str,
) -> None:
    assert overlapping(postgres, first, second) == becomes


def test_options_that_two_change_are_both_changed(postgres: Database) -> None:
    def change(name: str, value: float) -> Callable[[Connection], Any]:
        return lambda tx: service.set_options(tx, "default", "e", {name: value})

    assert overlapping(postgres, change("deadline", 7.0), change("queue", 3)) == "done"
    with postgres.read() as tx:
        options = shown(tx).options
    assert (options["deadline"], options["queue"]) == (7.0, 3)


def test_what_is_rolled_back_by_hand_does_not_go_on(postgres: Database) -> None:
    with postgres.write() as tx:
        rules = Rules(interval=1e-9, min_requests=1)
        service.roll_out(tx, "default", "e", "m@2", steps=(5, 50, 100), rules=rules)
        plane = DataPlane(tx)
        plane.answer("1", ok=0)
        plane.settle(2)
        plane.answer("1", ok=1000)
        plane.answer("2", ok=1000)

    def advance(tx: Connection) -> None:
        again = DataPlane(tx)
        again.counters = plane.counters
        again.settle()

    def back(tx: Connection) -> None:
        service.rollback(tx, "default", "e")

    assert overlapping(postgres, back, advance) == "done"
    with postgres.read() as tx:
        rollout = shown(tx).rollout
    assert rollout is not None
    assert rollout["state"] == "aborted"
