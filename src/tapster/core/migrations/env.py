"""Alembic's entry: run the steps over the connection that `Database.migrate` passes."""

from alembic import context
from sqlalchemy import Connection

from tapster.core.db import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
