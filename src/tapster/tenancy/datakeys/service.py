"""Another data key for a tenant, in steps that can be taken again; and keys as the plan has them.

From the commit of `begin` on, what is new is sealed with the new key. What lies there already is
then sealed anew, an object at a time, and at last the former key is destroyed. Whoever has sealed
something with the former key that lands only after that commit seals it anew by itself, so all that
`Resealing` must find is there when it begins to look.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.encryption import Rekeying
from tapster.contract.errors import TapsterError
from tapster.core.blobs import storage_error
from tapster.core.crypto import new_id
from tapster.core.envelope import DataKey
from tapster.core.parts import Parts, TenantKeys
from tapster.core.resealing import Piece
from tapster.core.telemetry import logger
from tapster.tenancy.audit.acts import acting, remark
from tapster.tenancy.datakeys import store
from tapster.tenancy.erasure import store as erasures
from tapster.tenancy.revisions import revise
from tapster.tenancy.tenants import service as tenants

log = logger(__name__)

# What of a tenant's lies sealed in a slice.
Sealed = Callable[[Parts, str], Iterator[Piece]]

# Data planes are given the new key before something is sealed with it that they read, if they are
# there within so many seconds.
PATIENT: Final = 30.0
# Whoever has opened a file of before has read in its header which key it needs, and what data
# planes have sealed with the former key on its way here has come.
LAST_READERS: Final = 4.0
RETRY: Final = 30.0
_SLICE: Final = 0.5
_TELL: Final = 1.0


def wrapped_keys(tx: Connection) -> dict[str, tuple[str, ...]]:
    """Every tenant's data keys as the master key has wrapped them, those in force first."""
    return store.everything(tx)


def begin(tx: Connection, keys: TenantKeys | None, tenant: str, asked_by: str) -> Rekeying:
    """Give a tenant another data key, for all that is sealed from the commit on.

    Raises TapsterError(not_found), and (conflict) when there is nothing to give it in place of, or
    when the last change has not ended.
    """
    store.lock(tx)
    tenants.show(tx, tenant)
    if erasures.ending(tx, tenant) is not None:
        raise TapsterError("conflict", f"tenant {tenant} is being erased, for good")
    if keys is None or not store.current(tx, tenant):
        raise TapsterError(
            "conflict",
            f"tenant {tenant} has no data key: nothing of its is sealed",
            hint="with TAPSTER_MASTER_KEY_FILE set, what is stored from then on is",
        )
    if (last := next(iter(history(tx, tenant)), None)) and last.status == "running":
        raise TapsterError(
            "conflict",
            f"tenant {tenant} is being given another key already: {last.resealed} of"
            f" {last.objects} objects are under it",
            hint=last.problem or "wait for its end: `tapster tenants rekeyings NAME`",
        )
    key, identifier = keys.renew(tx, tenant), new_id("rek")
    plan = revise(tx, tenant, f"tenant {tenant} has another data key")
    store.begin(tx, tenant, id=identifier, asked_by=asked_by, key=key.id, plan=plan)
    remark(tx, tenant, "tenants.rekey", f"tenant={tenant}", after=_told(identifier, key.id))
    return history(tx, tenant)[0]


def history(tx: Connection, tenant: str) -> list[Rekeying]:
    """How a tenant was given other data keys, newest first."""
    return [_shown(row) for row in store.history(tx, tenant)]


def listing(tx: Connection, tenant: str) -> list[Rekeying]:
    """The same of a tenant that there is. Raises TapsterError(not_found)."""
    tenants.show(tx, tenant)
    return history(tx, tenant)


@dataclass
class _Round:
    """One look at all that a tenant has: how far it is, and whether it was at `all`."""

    work: Iterator[None]
    all: bool = False
    due: float = 0.0
    resealed: int = 0
    objects: int = 0
    problem: str = ""
    told: float = 0.0
    changed: float = field(default_factory=time.monotonic)


class Resealing:
    """Brings every change of a data key to its end, a slice of time at a call."""

    def __init__(
        self, parts: Parts, slices: Mapping[str, Sealed], followed: Callable[[], list[int]]
    ) -> None:
        """`followed` gives the numbers of the plans that living workers follow."""
        self._parts = parts
        self._slices = slices
        self._followed = followed
        self._rounds: dict[str, _Round] = {}

    def go_on(self) -> int:
        """Work for a moment; returns how many changes are under way."""
        with self._parts.db.read() as tx:
            rows = store.unfinished(tx)
        self._rounds = {row["id"]: self._rounds.get(row["id"]) or self._round(row) for row in rows}
        until = time.monotonic() + _SLICE
        for row in rows:
            self._step(row, self._rounds[row["id"]], until)
        return len(rows)

    def _round(self, row: Any, problem: str = "", due: float = 0.0) -> _Round:
        made = _Round(iter(()), due=due, problem=problem)
        made.work = self._work(row, made)
        return made

    def _step(self, row: Any, at: _Round, until: float) -> None:
        if time.monotonic() < at.due or not self._heard(row):
            return
        if at.due:
            at.due, at.problem = 0.0, ""
        for _ in at.work:
            if time.monotonic() > until:
                break
        else:
            self._looked(row, at)
        if time.monotonic() - at.told > _TELL:
            self._tell(row, at)

    def _heard(self, row: Any) -> bool:
        """Whether the data planes have the new key; those that are away are not waited for long."""
        late = time.time() - row["began"] > PATIENT
        return late or all(plan >= row["plan"] for plan in self._followed())

    def _looked(self, row: Any, at: _Round) -> None:
        """A look has come to its end: so has the change, or there is another look later."""
        if at.problem or not at.all:
            self._tell(row, at)
            log.error("something cannot be sealed anew", tenant=row["tenant"], why=at.problem)
            again = self._round(row, at.problem, time.monotonic() + RETRY)
            again.objects, again.resealed = at.objects, at.resealed
            self._rounds[row["id"]] = again
        elif time.monotonic() - at.changed > LAST_READERS:
            self._end(row, at)

    def _work(self, row: Any, at: _Round) -> Iterator[None]:
        """Seal anew what is not under the new key, an object a step."""
        tenant = row["tenant"]
        try:
            assert self._parts.keys is not None
            key = self._parts.keys.find(tenant, row["key"])
            pieces = [p for look in self._slices.values() for p in look(self._parts, tenant)]
        except TapsterError as error:  # the tenant is being erased, or a master key is missing
            at.problem = error.message
            return
        except OSError as error:
            at.problem = storage_error(error).message
            return
        at.objects = len(pieces)
        at.resealed = 0
        for piece in pieces:
            self._seal(piece, key, at)
            yield
        at.all = True

    def _seal(self, piece: Piece, key: DataKey, at: _Round) -> None:
        try:
            if piece.reseal(key):
                at.changed = time.monotonic()
            at.resealed += 1
        except OSError as error:
            at.problem = f"{piece.name}: {storage_error(error).message}"
        except TapsterError as error:
            at.problem = f"{piece.name}: {error.message}"
        except Exception as error:  # a bug here must not destroy what is sealed
            log.exception("something cannot be sealed anew", what=piece.name)
            at.problem = f"{piece.name}: {type(error).__name__}"

    def _tell(self, row: Any, at: _Round) -> None:
        at.told = time.monotonic()
        told = {"objects": at.objects, "resealed": at.resealed, "problem": at.problem[:300]}
        with self._parts.db.write() as tx:
            store.note(tx, row["tenant"], row["id"], **told)

    def _end(self, row: Any, at: _Round) -> None:
        """Destroy the former key."""
        tenant, identifier = row["tenant"], row["id"]
        with acting(DEFAULT_TENANT, "tenants.rekey"), self._parts.db.write() as tx:
            store.lock(tx)
            known = {each["id"] for each in store.unfinished(tx)}
            if identifier not in known or erasures.ending(tx, tenant) is not None:
                return
            gone = store.destroy_former(tx, tenant)
            told = {"objects": at.objects, "resealed": at.resealed, "problem": ""}
            store.note(tx, tenant, identifier, ended=time.time(), **told)
            revise(tx, tenant, f"a former data key of tenant {tenant} is destroyed")
            after = {**_told(identifier, row["key"]), "destroyed": gone, "objects": at.objects}
            remark(tx, tenant, "tenants.rekey", f"tenant={tenant}", after=after)
        log.info("a tenant has another data key", tenant=tenant, objects=at.objects)


def _told(identifier: str, key: str) -> dict[str, Any]:
    return {"rekeying": identifier, "key_id": key}


def _shown(row: Any) -> Rekeying:
    return Rekeying(
        id=row["id"],
        tenant=row["tenant"],
        status="running" if row["ended"] is None else "ended",
        began=row["began"],
        ended=row["ended"],
        key=row["key"],
        objects=row["objects"],
        resealed=row["resealed"],
        problem=row["problem"],
    )
