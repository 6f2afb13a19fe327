"""Logged payloads, and the rules that redact them."""

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Nothing yet."""
