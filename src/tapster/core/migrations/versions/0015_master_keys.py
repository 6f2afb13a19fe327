"""Which master key wraps each data key."""

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Nothing yet."""
