"""The keyring of an installation: tenants' data keys in rows, wrapped by the master key."""

import threading
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.errors import TapsterError
from tapster.core.db import Database
from tapster.core.envelope import DataKey, Masters, new_data_key
from tapster.core.telemetry import logger
from tapster.tenancy.audit.acts import acting, remark
from tapster.tenancy.datakeys import store
from tapster.tenancy.erasure import store as erasures
from tapster.tenancy.revisions import revise

log = logger(__name__)

REWRAP: Final = "encryption.rewrap"


class StoredKeys:
    """A Keyring over the table of data keys. Read each time: a destroyed key is gone at once."""

    def __init__(self, db: Database, masters: Masters) -> None:
        self._db = db
        self._masters = masters
        self._making = threading.Lock()

    def current(self, tenant: str) -> DataKey:
        """See Keyring; the tenant's first key is made at its first use."""
        with self._making:
            with self._db.read() as tx:
                wrapped = store.current(tx, tenant)
            if not wrapped:
                try:
                    with self._db.write() as tx:
                        return self.within(tx, tenant)
                except DBAPIError:  # another control process may have been first
                    with self._db.read() as tx:
                        wrapped = store.current(tx, tenant)
                    if not wrapped:
                        raise
        return self._masters.unwrap(tenant, wrapped)

    def find(self, tenant: str, identifier: str) -> DataKey:
        """See Keyring."""
        with self._db.read() as tx:
            wrapped = store.wrapped(tx, tenant, identifier)
        if not wrapped:
            raise destroyed()
        return self._masters.unwrap(tenant, wrapped)

    def within(self, tx: Connection, tenant: str) -> DataKey:
        """The key in force, in a transaction that may write: nobody changes it before that ends."""
        store.lock(tx)
        if erasures.ending(tx, tenant):
            raise destroyed()
        wrapped = store.current(tx, tenant)
        return self._masters.unwrap(tenant, wrapped) if wrapped else self._made(tx, tenant)

    def renew(self, tx: Connection, tenant: str) -> DataKey:
        """Give a tenant another key; the one in force is a former one from the commit on."""
        store.lock(tx)
        store.retire(tx, tenant)
        return self._made(tx, tenant)

    def _made(self, tx: Connection, tenant: str) -> DataKey:
        master = self._masters.current
        if others := store.masters(tx).keys() - self._masters.names:
            raise TapsterError(
                "unavailable",
                f"another control process has changed the master key to {min(others)}",
                hint=f"start this one, which has {master.name}, with that key too",
            )
        made = new_data_key()
        store.add(tx, tenant, made.id, master.wrap(tenant, made), master.name)
        return made


def opened(db: Database, masters: Masters | None) -> StoredKeys | None:
    """The keyring of an installation; None if it does not encrypt.

    Data keys that the previous master key has wrapped are wrapped by the one in force, all of them
    or none. Raises TapsterError(unavailable) when there is sealed content that these master keys,
    or none, would not open: else new content would lie there in the clear, or under another key.
    """
    with db.read() as tx:
        found = store.masters(tx)
        tried = store.any_key(tx)
    if masters is None:
        if not found:
            return None
        raise TapsterError(
            "unavailable",
            "this home holds sealed content, and no master key is set",
            hint="set TAPSTER_MASTER_KEY_FILE, TAPSTER_MASTER_KEY or TAPSTER_MASTER_KEY_COMMAND"
            " as before",
            field="master_key_file",
        )
    if strange := found.keys() - masters.names:
        with db.read() as tx:
            rows = store.wrapped_by_others(tx, masters.name)
        tried = next((row[0], row[2]) for row in rows if not masters.opens(row[2]))
        log.error("a master key is missing", needed=sorted(strange), set=sorted(masters.names))
    if tried is not None:
        masters.unwrap(*tried)
    if found.keys() - {masters.name}:
        _rewrap(db, masters)
    return StoredKeys(db, masters)


def _rewrap(db: Database, masters: Masters) -> None:
    """Wrap every data key by the master key in force, in one transaction; tell data planes."""
    with acting(DEFAULT_TENANT, REWRAP), db.write() as tx:
        store.lock(tx)
        rows = store.wrapped_by_others(tx, masters.name)
        for tenant, identifier, wrapped in rows:
            key = masters.unwrap(tenant, wrapped)
            store.rewrap(tx, tenant, identifier, masters.current.wrap(tenant, key), masters.name)
        if not rows:  # another control process was first
            return
        assert masters.previous is not None
        revise(tx, DEFAULT_TENANT, "data keys are wrapped by another master key")
        remark(
            tx,
            DEFAULT_TENANT,
            REWRAP,
            before={"master": masters.previous.name},
            after={"master": masters.name, "data_keys": len(rows)},
        )
    log.warning("data keys are wrapped anew", master=masters.name, count=len(rows))


def destroyed() -> TapsterError:
    """What to say of content whose key is gone."""
    return TapsterError("not_found", "the stored files of this object are gone")
