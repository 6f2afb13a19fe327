"""Whom endpoints are published to; revisions that say what they changed."""

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create the tables."""
