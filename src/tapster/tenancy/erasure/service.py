"""The end of a tenant, in steps that can be taken again.

`begin` ends its keys and sessions and destroys its data keys, in one transaction. What runs is then
waited for, its files are written down and removed, and in a last transaction its rows go and the
receipt is signed: before that one commits, everything is done again after a death.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Erasure
from tapster.contract.errors import TapsterError
from tapster.core.crypto import new_id
from tapster.core.parts import Parts
from tapster.core.telemetry import logger
from tapster.tenancy import service as tenancy
from tapster.tenancy.audit.acts import remark
from tapster.tenancy.datakeys import store as datakeys
from tapster.tenancy.erasure import store
from tapster.tenancy.tenants import service as tenants

log = logger(__name__)

# Data planes report what was used before they heard of the end, about once a second.
_LAST_WORDS: Final = 3.0
# So long (seconds) after an end there may be news of the one who is no more.
_LATEST: Final = 40 * 24 * 3600.0
FORMAT: Final = "tapster-erasure-1"
# What a slice keeps of a tenant: amounts under another name, and a chain of hashes.
KEPT: Final = frozenset({"audit_lines", "audit_heads", "audit_details"})


@dataclass(frozen=True)
class Eraser:
    """What a slice does when a tenant ends, besides losing its rows; each may be left out.

    `stop` ends what runs, and says how much still does. `folders` are the tenant's outside the
    stores of blobs and uploads. `rows` does what deleting rows would not; what it returns is told
    in the receipt.
    """

    stop: Callable[[Connection, str], int] | None = None
    folders: Callable[[Connection, Parts, str], list[Path]] | None = None
    rows: Callable[[Connection, str], Any] | None = None


def begin(tx: Connection, tenant: str, asked_by: str) -> Erasure:
    """Let a tenant end: from the commit on, nobody is let in, and what was sealed opens no more.

    Raises TapsterError(not_found), and (conflict) for the installation's own.
    """
    datakeys.lock(tx)  # nobody else ends it now, or makes a key for it
    tenants.show(tx, tenant)
    if tenant == DEFAULT_TENANT:
        raise TapsterError("conflict", "the installation's own tenant cannot be erased")
    row = store.ending(tx, tenant)
    if row is None:
        identifier = new_id("era")
        store.begin(tx, tenant, identifier, asked_by)
        current, *former = [*datakeys.destroy(tx, tenant), ""]
        found = {"key": current, "former_keys": [each for each in former if each]}
        store.note(tx, tenant, identifier, found)
        tenancy.suspend_tenant(tx, tenant)
        remark(tx, tenant, "tenants.erase", f"tenant={tenant}", after={"erasure": identifier})
        row = store.ending(tx, tenant)
    return _shown(row)


def show(tx: Connection, tenant: str, identifier: str) -> Erasure:
    """One erasure. Raises TapsterError(not_found)."""
    for each in history(tx, tenant):
        if each.id == identifier:
            return each
    raise TapsterError("not_found", f"there is no erasure {identifier[:100]!r} of this tenant")


def history(tx: Connection, tenant: str) -> list[Erasure]:
    """A tenant's erasures, newest first, with their receipts."""
    return [_shown(row) for row in store.of_tenant(tx, tenant)]


class Endings:
    """Finishes erasures that have begun, whoever began them."""

    def __init__(self, parts: Parts, erasers: Mapping[str, Eraser]) -> None:
        self._parts = parts
        self._erasers = erasers

    def go_on(self) -> int:
        """Take every erasure as far as it goes now; returns how many are still under way."""
        with self._parts.db.read() as tx:
            rows = store.unfinished(tx)
        left = 0
        for row in rows:
            if self._stop(row["tenant"]) or time.time() - row["began"] < _LAST_WORDS:
                left += 1
            else:
                self._end(row)
        return left

    def sweep(self) -> int:
        """Treat what has come since of tenants that are no more; returns of how many it had.

        A data plane that was away reports what was used when it is back, days later perhaps.
        """
        with self._parts.db.read() as tx:
            gone = store.gone(tx, time.time() - _LATEST)
            late = [tenant for tenant in gone if store.left(tx, tenant, KEPT)]
        for tenant in late:
            with self._parts.db.write() as tx:
                if tenant in store.gone(tx, 0.0):
                    self._rows(tx, tenant)
        return len(late)

    def _rows(self, tx: Connection, tenant: str) -> tuple[dict[str, int], dict[str, Any]]:
        """Remove a tenant's rows; the counts by table, and what slices tell of what they keep."""
        store.overwrite(tx)
        tenancy.forget_reach(tx, tenant)
        told = {
            name: eraser.rows(tx, tenant)
            for name, eraser in self._erasers.items()
            if eraser.rows is not None
        }
        return store.remove_rows(tx, tenant, KEPT), told

    def _stop(self, tenant: str) -> int:
        """End what runs; how much still does."""
        stops = [eraser.stop for eraser in self._erasers.values() if eraser.stop is not None]
        with self._parts.db.write() as tx:
            return sum(stop(tx, tenant) for stop in stops)

    def _end(self, row: Any) -> None:
        tenant, identifier, found = row["tenant"], row["id"], dict(row["found"])
        files = _Files(self._parts, tenant)
        if "objects" not in found:
            with self._parts.db.write() as tx:
                folders = self._folders(tx, tenant)
                sizes = {str(path): _size(path) for path in folders}
            found |= {"objects": files.objects(), "folders": len(sizes)}
            found["bytes"] = sum(found["objects"].values()) + sum(sizes.values())
            with self._parts.db.write() as tx:
                found = self._noted(tx, row, found)
        with self._parts.db.read() as tx:
            folders = self._folders(tx, tenant)
        with self._parts.storage:
            files.remove(found["objects"])
            for path in folders:
                shutil.rmtree(path, ignore_errors=True)
            with self._parts.db.write() as tx:
                self._close(tx, row, found)
            files.remove({})  # what came between: nothing names it now
        log.info("a tenant is erased", tenant=tenant, erasure=identifier)

    def _noted(self, tx: Connection, row: Any, found: dict[str, Any]) -> dict[str, Any]:
        """What an erasure destroys, as whoever was first has found it: others may have begun to."""
        now = self._still(tx, row)
        if now is not None and "objects" in now["found"]:
            return dict(now["found"])
        store.note(tx, row["tenant"], row["id"], found)
        return found

    def _still(self, tx: Connection, row: Any) -> Any:
        """An erasure that nobody else ends before `tx` does; None if it has ended."""
        datakeys.lock(tx)
        now = store.ending(tx, row["tenant"])
        return now if now is not None and now["id"] == row["id"] else None

    def _folders(self, tx: Connection, tenant: str) -> list[Path]:
        asked = [eraser.folders for eraser in self._erasers.values() if eraser.folders is not None]
        return [path for folders in asked for path in folders(tx, self._parts, tenant)]

    def _close(self, tx: Connection, row: Any, found: dict[str, Any]) -> None:
        tenant = row["tenant"]
        if self._still(tx, row) is None:
            return
        rows, told = self._rows(tx, tenant)
        if left := store.left(tx, tenant, KEPT):
            raise RuntimeError(f"rows are left: {left}")
        store.remove_tenant(tx, tenant)
        tenancy.revise(tx, tenant, f"tenant {tenant} erased")
        ended = time.time()
        receipt = {
            "format": FORMAT,
            "id": row["id"],
            "tenant": tenant,
            "asked_by": row["asked_by"],
            "began": row["began"],
            "ended": ended,
            "key": found["key"],
            "former_keys": found.get("former_keys", []),
            "objects": found["objects"],
            "folders": found["folders"],
            "bytes": found["bytes"],
            "rows": rows,
            "kept": told,
            "public_key": self._parts.signer.public,
        }
        signed = {**receipt, "signature": self._parts.signer.sign(canonical(receipt))}
        store.end(tx, tenant, row["id"], ended, signed)


class _Files:
    """What of a tenant's lies in files of ours."""

    def __init__(self, parts: Parts, tenant: str) -> None:
        self._parts = parts
        self._tenant = tenant
        home = parts.settings.home
        self._uploads = home / "uploads" / tenant
        roots = [home] if parts.vault is None else [home, parts.vault.root]
        self._shelves = [root / "shelf" for root in roots]

    def objects(self) -> dict[str, int]:
        """Everything stored, by what it is called: bytes."""
        found = {}
        for key in self._parts.blobs.keys():  # noqa: SIM118 - a store is no mapping
            if key.startswith(f"{self._tenant}/"):
                found[key] = _size(self._parts.settings.home / "blobs" / key)
        for path in sorted(self._uploads.glob("*/*")):
            name = f"{self._tenant}/uploads/{path.parent.name}"
            found[name] = found.get(name, 0) + path.stat().st_size
        return found

    def remove(self, known: Mapping[str, int]) -> None:
        """Remove what is known, and what else is there."""
        shutil.rmtree(self._uploads, ignore_errors=True)
        for key in sorted({*known, *self.objects()}):
            _, kind, name = key.split("/")
            if kind == "uploads":
                continue
            self._parts.blobs.delete(key)
            for shelf in self._shelves if kind == "packages" else ():
                shutil.rmtree(shelf / name, ignore_errors=True)
        if self._parts.vault is not None:
            self._parts.vault.drop(self._tenant)


def canonical(receipt: Mapping[str, Any]) -> bytes:
    """The bytes that a receipt's signature is over: JSON, keys in order, no spaces."""
    text = json.dumps(receipt, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _shown(row: Any) -> Erasure:
    return Erasure(
        id=row["id"],
        tenant=row["tenant"],
        status="ended" if row["ended"] is not None else "running",
        began=row["began"],
        ended=row["ended"],
        receipt=row["receipt"],
    )
