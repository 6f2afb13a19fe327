"""Datasets, their versions and splits."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "datasets",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("newest", sa.Integer, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("columns", sa.JSON, nullable=False),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("parents", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("job", sa.String(32), nullable=False),
        sa.UniqueConstraint("tenant", "name", "digest", name="uq_dataset_versions_digest"),
    )
    op.create_index("ix_dataset_versions_digest", "dataset_versions", ["tenant", "digest"])
    op.create_table(
        "dataset_splits",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("dataset", sa.String(100), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("fractions", sa.JSON, nullable=False),
        sa.Column("column", sa.String(256), nullable=False),
        sa.Column("rows", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "dataset_secrets",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("job", sa.String(32), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
    )
