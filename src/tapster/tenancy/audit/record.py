"""The record of an installation: it witnesses every writing transaction and hears of refusals."""

import asyncio
import threading
import time
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.errors import HTTP_STATUS, Code, TapsterError
from tapster.core.changes import Changes
from tapster.core.db import Database
from tapster.core.telemetry import logger
from tapster.tenancy.audit import chain, store
from tapster.tenancy.audit.acts import Act, current, remark
from tapster.tenancy.audit.heads import Heads
from tapster.tenancy.audit.refusals import Refusals
from tapster.tenancy.audit.telling import draft, drafts

log = logger(__name__)

# A head is kept after so many lines, and after so many seconds if there is a new line.
LINES: Final = 100
SECONDS: Final = 60.0
BEAT: Final = 1.0
_CODES: Final[dict[int, Code]] = {status: code for code, status in HTTP_STATUS.items()}


class Record:
    """A `Witness` of the database, and the keeper of heads. `close` writes what still waits."""

    def __init__(self, db: Database, heads: Heads) -> None:
        self.heads = heads
        self._db = db
        self._refusals = Refusals()
        self._newest = 0
        self._kept_at = time.monotonic()
        self._keeping = threading.Lock()
        self._writing = threading.Lock()

    # -- transactions

    def opened(self) -> Changes:
        """See Witness. Rows matter of requests that may write, and of work with a name."""
        act = current.get()
        return Changes(wanted=act is not None and act.writes, context=act)

    def closing(self, tx: Connection, changes: Changes) -> None:
        """See Witness: the lines of a change, in its own transaction."""
        made = drafts(changes.context, changes) if changes.rows or changes.remarks else []
        changes.rows, changes.remarks = [], []
        if made:
            changes.remarks = [chain.append(tx, made), len(made)]

    def committed(self, changes: Changes) -> None:
        """See Witness."""
        if not changes.remarks:
            return
        number, count = changes.remarks
        if changes.context is not None:
            changes.context.lines += count
        self._newest = max(self._newest, number)
        if number - self.heads.newest >= LINES:
            self._keep_head()

    # -- requests

    def ended(self, act: Act, status: int) -> None:
        """A request was answered: if its transactions left no line and it deserves one, here."""
        refused = status >= 400 and (act.writes or status in {401, 403})
        unwritten = status < 400 and act.lines == 0 and act.writes
        if not (refused or unwritten or (act.seen and status < 400)):
            return
        self._refusals.add(
            draft(
                act,
                tenant=act.whose,
                action=act.action,
                target=act.target,
                status=status,
                code=_CODES.get(status, "") if status >= 400 else "",
            )
        )

    # -- as time passes

    async def run(self) -> None:
        """Write what waits each second, and heads each minute, until cancelled."""
        await asyncio.to_thread(self.begin)
        while True:
            await asyncio.sleep(BEAT)
            await asyncio.to_thread(self.beat)

    def begin(self) -> None:
        """The first head. A record that is behind its heads was cut back: new ones go on there."""
        with self._db.read() as tx:
            number = store.head(tx)[0]
        if number < self.heads.newest:
            known = self.heads.newest
            log.error("the audit record was cut back", line=number, signed_head=known)
            with self._db.write() as tx:
                told = {"line": number, "signed_head": known}
                remark(tx, DEFAULT_TENANT, "audit.behind", after=told)
            self.heads.newest = number
        self._keep_head()

    def beat(self) -> None:
        """Write the refusals that wait; keep a head if the last one is a minute old."""
        self._write_refusals()
        due = time.monotonic() - self._kept_at >= SECONDS
        if due and self._newest > self.heads.newest:
            self._keep_head()

    def close(self) -> None:
        """The end: nothing waits any more, and the newest line has its head."""
        self._write_refusals()
        self._keep_head()

    def _write_refusals(self) -> None:
        with self._writing:
            waiting = self._refusals.take()
            if not waiting:
                return
            try:
                with self._db.write() as tx:
                    number = chain.append(tx, waiting)
            except (DBAPIError, TapsterError) as error:
                self._refusals.give_back(waiting)
                log.error("refused attempts wait to be recorded", reason=str(error)[:200])
                return
        self._newest = max(self._newest, number)
        if number - self.heads.newest >= LINES:
            self._keep_head()

    def _keep_head(self) -> None:
        """Sign the newest line and keep that outside the database; a failure is tried again."""
        if not self._keeping.acquire(blocking=False):
            return
        try:
            with self._db.read() as tx:
                number, digest = store.head(tx)
            self._newest = max(self._newest, number)
            if number > self.heads.newest:
                self.heads.keep(number, digest)
            self._kept_at = time.monotonic()
        except (DBAPIError, TapsterError, OSError) as error:
            log.error("no head of the audit was kept", reason=type(error).__name__)
        finally:
            self._keeping.release()
