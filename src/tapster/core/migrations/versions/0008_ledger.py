"""Usage lines, their sums, and prices.

Lines are append-only: triggers refuse to delete them, and to change anything but the names of a
tenant that is erased, which give way to a pseudonym (`erased:...`).
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_COUNTERS = (
    "requests", "errors", "rows", "tokens", "compute", "cached", "training", "storage",
)  # fmt: skip
_FIXED = (
    "id", "at", "hour", "day", "kind", "month", "machine", "price", "above", *_COUNTERS, "amount",
)  # fmt: skip


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "usage_lines",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("hour", sa.String(13), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        *_label(),
        *_numbers(*_COUNTERS, "amount"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_usage_lines_tenant_day", "usage_lines", ["tenant", "day"])
    op.create_index("ix_usage_lines_owner_day", "usage_lines", ["owner", "day"])
    for name in ("usage_hours", "usage_days"):
        op.create_table(
            name,
            sa.Column("period", sa.String(13), primary_key=True),
            sa.Column("series", sa.String(32), primary_key=True),
            *_label(),
            *_numbers(*_COUNTERS, "amount"),
        )
        op.create_index(f"ix_{name}_tenant_period", name, ["tenant", "period"])
        op.create_index(f"ix_{name}_owner_period", name, ["owner", "period"])
    op.create_table(
        "usage_totals",
        sa.Column("machine", sa.String(255), primary_key=True),
        sa.Column("segment", sa.String(64), primary_key=True),
        sa.Column("record", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("label", sa.String(32), nullable=False),
        *_numbers(*_COUNTERS[:6]),
    )
    op.create_table(
        "usage_segments",
        sa.Column("machine", sa.String(255), primary_key=True),
        sa.Column("segment", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_index("ix_usage_segments_machine_day", "usage_segments", ["machine", "day"])
    op.create_table(
        "usage_machines",
        sa.Column("machine", sa.String(255), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("open_days", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "usage_meters",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("price", sa.String(32), primary_key=True),
        sa.Column("month", sa.String(7), primary_key=True),
        *_numbers(*_COUNTERS, "amount"),
    )
    op.create_table(
        "prices",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(128), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("tiers", sa.JSON, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("until", sa.Float),
    )
    op.create_index("ix_prices_tenant_endpoint", "prices", ["tenant", "endpoint"])
    op.create_index("ix_prices_caller", "prices", ["caller"])
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
    else:
        _guard_sqlite()


def _label() -> list[sa.Column[str] | sa.Column[int]]:
    lengths = {
        "kind": 16, "month": 7, "tenant": 64, "key": 64, "owner": 64, "endpoint": 64, "name": 128,
        "model": 128, "version": 128, "machine": 255, "price": 32,
    }  # fmt: skip
    names = [sa.Column(name, sa.String(most), nullable=False) for name, most in lengths.items()]
    return [*names, sa.Column("above", sa.BigInteger, nullable=False)]


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _changed(distinct: str) -> str:
    """When an update is more than a tenant's name that gives way to a pseudonym."""
    fixed = " OR ".join(f'OLD."{name}" {distinct} NEW."{name}"' for name in _FIXED)
    renamed = " OR ".join(
        f"(OLD.{name} {distinct} NEW.{name} AND NEW.{name} NOT LIKE 'erased:%')"
        for name in ("tenant", "owner")
    )
    nobody = f"NOT (OLD.tenant {distinct} NEW.tenant OR OLD.owner {distinct} NEW.owner)"
    return f"{fixed} OR {renamed} OR {nobody}"


def _guard_sqlite() -> None:
    refuse = "BEGIN SELECT RAISE(ABORT, 'usage lines are append-only'); END"
    op.execute(f"CREATE TRIGGER usage_lines_kept BEFORE DELETE ON usage_lines {refuse}")
    op.execute(
        "CREATE TRIGGER usage_lines_fixed BEFORE UPDATE ON usage_lines"
        f" WHEN {_changed('IS NOT')} {refuse}"
    )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION usage_lines_refuse() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RAISE EXCEPTION 'usage lines are append-only'; END $$"
    )
    call = "EXECUTE FUNCTION usage_lines_refuse()"
    op.execute(f"CREATE TRIGGER usage_lines_kept BEFORE DELETE ON usage_lines FOR EACH ROW {call}")
    op.execute(
        f"CREATE TRIGGER usage_lines_whole BEFORE TRUNCATE ON usage_lines FOR EACH STATEMENT {call}"
    )
    op.execute(
        "CREATE TRIGGER usage_lines_fixed BEFORE UPDATE ON usage_lines FOR EACH ROW"
        f" WHEN ({_changed('IS DISTINCT FROM')}) {call}"
    )
