"""Whom endpoints are published to; revisions that say what they changed."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create the table; add the columns. Of older revisions nobody knows what they changed."""
    for name, length in (("kind", 16), ("ref", 100), ("mark", 16)):
        column = sa.Column(name, sa.String(length), nullable=False, server_default="")
        op.add_column("revisions", column)
    op.create_table(
        "shares",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("consumer", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("kind", "tenant", "name", "consumer"),
    )
    op.create_index("ix_shares_consumer", "shares", ["consumer"])
