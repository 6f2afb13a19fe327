"""Tenants' names and states, members, roles, sessions, keys with names and scopes."""

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the tables."""
