"""Verbs over the record: list, check, export, and destroy what it tells of a tenant.

Those that read much open short transactions of their own, page by page: a long one would keep
writers waiting, and lines that are there do not change.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.audit import (
    ERASED,
    GENESIS,
    WHOLE,
    AuditLine,
    Checker,
    Fault,
    Head,
    Seal,
    Verdict,
    seal_message,
)
from tapster.contract.control import DEFAULT_TENANT, Principal
from tapster.core.changes import changes_of
from tapster.core.db import Database
from tapster.tenancy.audit import chain, store
from tapster.tenancy.audit.acts import Muted, remark
from tapster.tenancy.audit.heads import Heads
from tapster.tenancy.audit.store import Selection

PAGE: Final = 500


def view_of(who: Principal) -> str:
    """Whose lines somebody sees: those of all in the installation's tenant, else their own."""
    return WHOLE if who.tenant == DEFAULT_TENANT else who.tenant


def narrowed(view: str, wanted: Selection) -> Selection | None:
    """A selection within a view; None when nothing of it can be seen."""
    if view == WHOLE:
        return wanted
    return replace(wanted, tenant=view) if wanted.tenant in {"", view} else None


def listing(db: Database, view: str, wanted: Selection, before: int, count: int) -> list[AuditLine]:
    """The newest lines below number `before` (0: the newest of all), newest first."""
    seen = narrowed(view, wanted)
    found: list[AuditLine] = []
    if seen is None:
        return found
    with db.read() as tx:
        newest = store.head(tx)[0]
    at = min(before, newest + 1) if before else newest + 1
    while at > 1 and len(found) < count:
        with db.read() as tx:
            lines, at = store.page_back(tx, seen, at, count - len(found))
        found += [chain.told(*each) for each in lines]
    return found


def head(db: Database, heads: Heads, view: str) -> Head:
    """A signed head of now; one that its reader keeps tells later of lines that are cut off."""
    with db.read() as tx:
        number, digest = store.head(tx) if view == WHOLE else store.newest(tx, view)
    return heads.signed(view, number, digest)


def lines(db: Database, wanted: Selection, last: int) -> Iterator[list[AuditLine]]:
    """The lines of a selection up to number `last`, in order, page by page; some may be empty."""
    at = 0
    while at < last:
        with db.read() as tx:
            found, at = store.page(tx, wanted, at, last, PAGE)
        yield [chain.told(*each) for each in found]


def check(db: Database, heads: Heads, view: str) -> Iterator[dict[str, Any] | Verdict]:
    """Check all lines of a view against each other and the heads: progress, then the verdict.

    Progress is {"checked", "last"}: the number up to which lines were checked, and the last.
    """
    faults: list[str] = []
    kept = heads.read(faults) if view == WHOLE else iter(())
    with db.read() as tx:  # after the heads' files: none of them may be ahead of it
        highest = store.highest(tx)  # and before the database's own, for the same reason
        last, digest = store.head(tx) if view == WHOLE else store.newest(tx, view)
    checker = Checker(view, kept)
    wanted = Selection(tenant="" if view == WHOLE else view)
    newest = GENESIS
    for page in lines(db, wanted, last):
        for line in page:
            checker.take(line)
            newest = line.hash
        yield {"checked": checker.last, "last": last}
    if view == WHOLE:
        _check_own_head(checker, newest, (last, digest), highest)
    verdict = checker.verdict()
    also = [Fault(0, problem) for problem in faults]
    yield replace(verdict, ok=verdict.ok and not also, faults=[*verdict.faults, *also])


def _check_own_head(checker: Checker, newest: str, own: tuple[int, str], highest: int) -> None:
    """The database's own head names the last line that is there."""
    number = own[0]
    if checker.last < number:
        missing = f"lines {checker.last + 1} to {number}, which the database's own head names,"
        checker.fault(checker.last + 1, f"{missing} are missing")
    elif (checker.last, newest) != own:
        checker.fault(number, "the database's own head names another line")
    if highest > number:
        checker.fault(number + 1, f"lines up to {highest} were added beyond the database's head")


def export(db: Database, heads: Heads, view: str, wanted: Selection) -> Iterator[bytes]:
    """The lines of a selection as lines of JSON, and a signed seal as the last one."""
    seen = narrowed(view, wanted)
    end = head(db, heads, view)
    over, count = hashlib.sha256(), 0
    for page in lines(db, seen, end.number) if seen is not None else ():
        for line in page:
            over.update(bytes.fromhex(line.hash))
        count += len(page)
        if page:
            yield b"".join(map(chain.as_json, page))
    asked = wanted.narrow or wanted.tenant not in {"", view}
    seal = Seal(view, not asked, count, over.hexdigest(), end)
    yield chain.as_json(replace(seal, signature=heads.sign(seal_message(seal))))


def erase(tx: Connection, tenant: str) -> int:
    """Destroy what a tenant's lines tell, for good; the lines stay, and the chain holds.

    Call it in the last transaction of an erasure: what that one removes of the tenant's is told
    to nobody, and a line `audit.erase` says that from there on backwards nothing can be read.
    """
    destroyed = store.destroy_details(tx, tenant)
    changes = changes_of(tx)
    if changes is not None:
        changes.remarks.append(Muted({tenant}))
        told = {"destroyed": destroyed}
        remark(tx, tenant, ERASED, f"tenant={tenant}", after=told, alone=True)
    return destroyed
