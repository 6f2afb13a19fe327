"""Tenants' data keys: in rows, wrapped; and as a data plane learns them from its plan."""

import threading

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tapster.contract.errors import TapsterError
from tapster.core.db import Database
from tapster.core.envelope import DataKey, Master, new_data_key
from tapster.tenancy.erasure import store


class StoredKeys:
    """A Keyring over the table of data keys. Read each time: a destroyed key is gone at once."""

    def __init__(self, db: Database, master: Master) -> None:
        self._db = db
        self._master = master
        self._making = threading.Lock()

    def current(self, tenant: str) -> DataKey:
        """See Keyring; the tenant's first key is made at its first use."""
        with self._making:
            with self._db.read() as tx:
                wrapped = store.wrapped_key(tx, tenant)
            if not wrapped:
                try:
                    with self._db.write() as tx:
                        wrapped = self._made(tx, tenant)
                except DBAPIError:  # another control process may have been first
                    with self._db.read() as tx:
                        wrapped = store.wrapped_key(tx, tenant)
                    if not wrapped:
                        raise
        return self._master.unwrap(tenant, wrapped)

    def find(self, tenant: str, identifier: str) -> DataKey:
        """See Keyring."""
        with self._db.read() as tx:
            wrapped = store.wrapped_key(tx, tenant)
        if not wrapped.startswith(f"{identifier}:"):
            raise destroyed()
        return self._master.unwrap(tenant, wrapped)

    def _made(self, tx: Connection, tenant: str) -> str:
        if store.ending(tx, tenant):
            raise destroyed()
        wrapped = store.wrapped_key(tx, tenant)
        if not wrapped:
            wrapped = self._master.wrap(tenant, new_data_key())
            store.add_key(tx, tenant, wrapped)
        return wrapped


def opened(db: Database, master: Master | None) -> StoredKeys | None:
    """The keyring of an installation; None if it does not encrypt.

    Raises TapsterError(unavailable) when it has sealed content that this master key, or none,
    would not open: else new content would lie there in the clear, or under another key.
    """
    with db.read() as tx:
        found = store.any_key(tx)
    if found is not None and master is None:
        raise TapsterError(
            "unavailable",
            "this home holds sealed content, and no master key is set",
            hint="set TAPSTER_MASTER_KEY_FILE, TAPSTER_MASTER_KEY or TAPSTER_MASTER_KEY_COMMAND"
            " as before",
            field="master_key_file",
        )
    if master is None:
        return None
    if found is not None:
        master.unwrap(*found)
    return StoredKeys(db, master)


def destroyed() -> TapsterError:
    """What to say of content whose key is gone."""
    return TapsterError("not_found", "the stored files of this object are gone")
