"""Models published to other tenants: rows of `shares`, which is there already."""

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Nothing is changed."""
