"""The database: one metadata, explicit transactions, SQLite or PostgreSQL by URL.

SQLite runs with a rollback journal, `synchronous=FULL` and one writing connection that takes its
lock at `BEGIN IMMEDIATE`: SQLite before 3.51.3 can corrupt a WAL that two connections write.

A database that does not answer is waited for a few seconds, and hardly at all while that goes on,
so that callers hear of it at once.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tapster.contract.errors import TapsterError
from tapster.core.blobs import in_transaction
from tapster.core.changes import OPTION, Changes, Witness, watch

PATIENT: Final = 5.0
HASTY: Final = 0.1

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Database:
    """Transactions over one URL. Open them at the edge (a route, the claim loop), nowhere else."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")
        self.engine = self._sqlite() if self.sqlite else _postgresql(url)
        self.writes = 0
        self.witness: Witness | None = None
        event.listen(self.engine, "before_execute", watch)
        self._writer = threading.Lock()
        self._patience = PATIENT

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; commits at the end, rolls back on any exception.

        The witness sees what it changed before it commits, and is told when it has.
        """
        witness = self.witness
        changes = witness.opened() if witness else None
        with self._writing(changes) as connection:
            yield connection
            if witness and changes:
                witness.closing(connection, changes)
        if witness and changes:
            witness.committed(changes)

    @contextmanager
    def _writing(self, changes: Changes | None) -> Iterator[Connection]:
        if not self.sqlite:
            with self._begin("", changes) as connection:
                yield connection
            return
        if not self._writer.acquire(timeout=2 * self._patience):
            raise _busy()
        try:
            with self._begin("BEGIN IMMEDIATE", changes) as connection:
                yield connection
            self.writes += 1
        finally:
            self._writer.release()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: a consistent view, without the write lock."""
        with self._begin("BEGIN" if self.sqlite else "") as connection:
            yield connection

    @contextmanager
    def _begin(self, statement: str, changes: Changes | None = None) -> Iterator[Connection]:
        token = in_transaction.set(True)
        try:
            with self.engine.connect() as plain:
                options: dict[str, Any] = {"tapster_begin": statement, OPTION: changes}
                connection = plain.execution_options(**options)
                with connection.begin():
                    yield connection
        except PoolTimeoutError:
            raise _busy() from None
        except OperationalError as error:
            if "locked" in str(error.orig):
                self._patience = HASTY
            raise
        else:
            self._patience = PATIENT
        finally:
            in_transaction.reset(token)

    def migrate(self) -> None:
        """Bring the schema to this release's, in one transaction a step."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", "tapster.core:migrations")
        with self.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _sqlite(self) -> Engine:
        path = Path(make_url(self.url).database or "").absolute().as_uri()
        mode = "rwc"

        def connect() -> sqlite3.Connection:
            nonlocal mode
            made = sqlite3.connect(
                f"{path}?mode={mode}",
                uri=True,
                timeout=self._patience,
                isolation_level=None,  # we say BEGIN ourselves
                check_same_thread=False,
            )
            for pragma in ("journal_mode=DELETE", "synchronous=FULL", "foreign_keys=ON"):
                made.execute(f"PRAGMA {pragma}")
            mode = "rw"  # a file that is gone is not to be made again, empty
            return made

        engine = create_engine(self.url, creator=connect, pool_size=8, pool_timeout=PATIENT)

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            statement = connection.get_execution_options().get("tapster_begin", "BEGIN IMMEDIATE")
            connection.exec_driver_sql(f"PRAGMA busy_timeout={int(self._patience * 1000)}")
            connection.exec_driver_sql(statement or "BEGIN")

        return engine


class Watch:
    """Tells a poller whether there may be news, so that an idle process asks the database little.

    SQLite has one owner, so there is news after a write of this process; and, because time passes
    too, once a second. Other databases have other writers and are asked every time.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._seen = -1
        self._due = 0.0

    def news(self) -> bool:
        """Whether to look again."""
        now, writes = time.monotonic(), self._db.writes
        if self._db.sqlite and writes == self._seen and now < self._due:
            return False
        self._seen, self._due = writes, now + 1.0
        return True


def _postgresql(url: str) -> Engine:
    return create_engine(
        url.replace("postgresql://", "postgresql+psycopg://", 1),
        pool_size=8,
        pool_timeout=PATIENT,
        pool_pre_ping=True,
        connect_args={"connect_timeout": int(PATIENT)},
    )


def _busy() -> TapsterError:
    return TapsterError(
        "unavailable",
        "the database did not answer",
        hint="try again; if it goes on, run `tapster doctor`",
    )
