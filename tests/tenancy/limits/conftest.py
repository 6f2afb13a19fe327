"""A migrated database of either kind, a tenant in it, and machines that report what they count."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tapster.app  # noqa: F401 - every slice's tables are registered
from tapster.contract.control import DEFAULT_TENANT, Principal
from tapster.contract.usage import Ask, Count, Grant, GrantRequest, Line, Segment, UsageReport
from tapster.core.db import Database
from tapster.tenancy.ledger import service as ledger
from tapster.tenancy.limits import grants, service, spans
from tapster.tenancy.limits.service import Wanted
from tapster.tenancy.tenants import service as tenants

INSTALLATION = Principal(DEFAULT_TENANT, "key_admin", frozenset({"*"}))
ENDPOINTS = {"wine": ("acme", "wine"), "shared": ("other", "shared")}


class Bench:
    """Limits and machines over one database."""

    def __init__(self, db: Database) -> None:
        self.db = db
        with db.write() as tx:
            for name in (DEFAULT_TENANT, "acme", "other"):
                tenants.ensure(tx, name)

    def limit(self, metric: str, amount: float | None, period: str = "", **more: object) -> str:
        """Set a limit of acme; its id."""
        who = Principal(str(more.pop("by", DEFAULT_TENANT)), "key_x", frozenset({"*"}))
        scope = {name: str(more.pop(name, "")) for name in ("endpoint", "key")}
        wanted = Wanted(metric, amount, period, **more)  # type: ignore[arg-type]
        with self.db.write() as tx:
            found = service.put(
                tx, who, "acme", [wanted], lambda _tx, _tenant, name: ENDPOINTS.get(name), **scope
            )
        same = [
            each
            for each in found
            if (each.metric, each.period, each.set_by) == (metric, period, who.tenant)
            and (each.key, each.endpoint.rpartition("--")[2]) == (scope["key"], scope["endpoint"])
        ]
        return same[0].id if same else ""

    def ask(self, machine: str, limit: str, total: int, day: str = "") -> Grant:
        """A machine asks once."""
        request = GrantRequest(machine, (Ask(limit, day or spans.today(), total),))
        with self.db.write() as tx:
            answered = grants.answer(tx, request)
        return answered.grants[0]

    def ask_all(self, machine: str, limit: str, total: int, day: str = "") -> Grant:
        """A machine asks until it has what it wants, or nothing is left."""
        for _ in range(100):
            found = self.ask(machine, limit, total, day)
            if found.total >= total or found.spent:
                return found
        raise AssertionError(f"still {found}")

    def report(
        self,
        machine: str,
        day: str = "",
        *,
        sealed: bool = False,
        open_days: tuple[str, ...] = (),
        endpoint: tuple[str, str] = ("acme", "wine"),
        key: str = "key_1",
        tenant: str = "acme",
        **counts: int,
    ) -> None:
        """A machine reports totals of a day."""
        day = day or spans.today()
        owner, name = endpoint
        line = Line(day, tenant, key, owner, f"ep_{name}", name, "m", "1")
        record = Count(0, line, **counts)
        segment = Segment(f"{machine}-{day}-{name}-{key}", day, sealed, (record,))
        with self.db.write() as tx:
            ledger.take(tx, UsageReport(machine, (segment,), open_days or (day,)))


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated, empty database of either kind."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    else:
        database = Database(request.getfixturevalue("postgres_url"))
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def bench(db: Database) -> Bench:
    """Tenants acme and other."""
    return Bench(db)
