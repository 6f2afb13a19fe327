"""Tenants' names and states, members, roles, sessions, keys with names and scopes."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the tables; keys that are there keep their rights and have no name yet."""
    op.add_column("tenants", sa.Column("title", sa.String(200), nullable=False, server_default=""))
    op.add_column(
        "tenants", sa.Column("status", sa.String(16), nullable=False, server_default="active")
    )
    op.add_column("tenants", sa.Column("weight", sa.Float, nullable=False, server_default="1"))
    _keys()
    op.create_table(
        "roles",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(64), primary_key=True),
        sa.Column("rights", sa.JSON, nullable=False),
        sa.Column("description", sa.String(300), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "members",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("role", sa.String(64), nullable=False),
        sa.Column("tenants", sa.JSON, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("password", sa.String(200)),
        sa.Column("subject", sa.String(700)),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("last_seen", sa.Float),
        sa.UniqueConstraint("tenant", "name", name="uq_members_tenant"),
    )
    _sessions()


def _keys() -> None:
    for name, length in (("name", 100), ("prefix", 16), ("role", 64), ("made_by", 300)):
        text = sa.Column(name, sa.String(length), nullable=False, server_default="")
        op.add_column("keys", text)
    for name in ("endpoints", "tenants"):
        op.add_column("keys", sa.Column(name, sa.JSON(none_as_null=True)))
    for name in ("last_used", "revoked", "old_expires"):
        op.add_column("keys", sa.Column(name, sa.Float))
    op.add_column("keys", sa.Column("old_digest", sa.String(64)))
    op.create_index("ix_keys_old_digest", "keys", ["old_digest"], unique=True)


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("member", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("how", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("last_used", sa.Float),
    )
    op.create_index("ix_sessions_tenant", "sessions", ["tenant", "member"])
    op.create_table(
        "attempts",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("who", sa.String(300), primary_key=True),
        sa.Column("level", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "sign_ins",
        sa.Column("state", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("verifier", sa.String(128), nullable=False),
        sa.Column("redirect", sa.String(500), nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
