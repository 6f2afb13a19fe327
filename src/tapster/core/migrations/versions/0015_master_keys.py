"""Which master key wraps each data key, several of a tenant; what jobs know and may not be seen."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Make `data_keys` anew with what is in it; passwords of jobs that go on move."""
    _data_keys()
    op.create_table(
        "rekeyings",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False, index=True),
        sa.Column("asked_by", sa.String(64), nullable=False),
        sa.Column("began", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
        sa.Column("key", sa.String(32), nullable=False),
        sa.Column("plan", sa.Integer, nullable=False),
        sa.Column("objects", sa.Integer, nullable=False),
        sa.Column("resealed", sa.Integer, nullable=False),
        sa.Column("problem", sa.String(300), nullable=False),
    )
    op.create_table(
        "job_secrets",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("job", sa.String(32), primary_key=True),
        sa.Column("field", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    line = op.get_bind()
    if line.dialect.name == "sqlite":
        line.exec_driver_sql("PRAGMA secure_delete=ON")
    line.execute(
        sa.text(
            "INSERT INTO job_secrets (tenant, job, field, value)"
            " SELECT tenant, job, 'url', url FROM dataset_secrets WHERE job IN"
            " (SELECT id FROM jobs WHERE status IN ('queued', 'running'))"
        )
    )
    line.execute(sa.text("DELETE FROM dataset_secrets"))
    op.drop_table("dataset_secrets")


def _data_keys() -> None:
    line = op.get_bind()
    held = line.execute(sa.text("SELECT tenant, wrapped, created FROM data_keys")).all()
    op.drop_table("data_keys")
    made = op.create_table(
        "data_keys",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("master", sa.String(16), nullable=False),
        sa.Column("wrapped", sa.String(200), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("retired", sa.Float),
    )
    current = sa.text("retired IS NULL")
    op.create_index(
        "uq_data_keys_current",
        "data_keys",
        ["tenant"],
        unique=True,
        sqlite_where=current,
        postgresql_where=current,
    )
    rows = [(tenant, *text.split(":")[:2], text, at) for tenant, text, at in held]
    names = ("tenant", "id", "master", "wrapped", "created")
    if rows:
        op.bulk_insert(made, [dict(zip(names, row, strict=True)) for row in rows])
