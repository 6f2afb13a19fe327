"""Endpoints serve sets of versions; options and rollouts of endpoints."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_SETS = ("serving", "pending", "previous")


def upgrade() -> None:
    """Add the columns; what served alone becomes a set of one."""
    op.add_column("endpoints", sa.Column("options", sa.JSON(none_as_null=True)))
    op.add_column("endpoints", sa.Column("rollout", sa.JSON(none_as_null=True)))
    table = sa.table(
        "endpoints",
        sa.column("id", sa.String),
        *(sa.column(name, sa.JSON(none_as_null=True)) for name in _SETS),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(table)).mappings().all():
        values = {name: _set(row[name]) for name in _SETS}
        connection.execute(table.update().where(table.c.id == row["id"]).values(**values))


def _set(held: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if held is None else {"variants": [held]}
