"""What a job must know and nobody may see again, a URL with its password say.

It is kept apart from the job, sealed with the tenant's data key where there is a master key, and
removed in the transaction that ends the job; a job that is tried again finds it again.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Final

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.core.envelope import DataKey, Keyring, opened_bytes, sealed_bytes, sealed_with
from tapster.core.parts import Parts, TenantKeys
from tapster.core.resealing import Piece
from tapster.jobs import store
from tapster.jobs.store import Secret

_SEALED: Final = "sealed:"


def keep(
    tx: Connection, keys: TenantKeys | None, tenant: str, job: str, values: Mapping[str, str]
) -> None:
    """Keep values for a job by the fields of its task that they are for."""
    for field, value in values.items():
        secret = Secret(tenant, job, field, value)
        if keys is not None:
            secret = _sealed(secret, value, keys.within(tx, tenant))
        store.keep_secret(tx, secret)


def opened(keys: Keyring | None, kept: Iterable[Secret]) -> dict[str, str]:
    """What was kept for a job, in the clear, by field.

    Raises TapsterError(unavailable) if it is sealed and there is no master key.
    """
    return {secret.field: _opened(keys, secret) for secret in kept}


def pieces(parts: Parts, tenant: str) -> Iterator[Piece]:
    """What is kept for a tenant's jobs."""
    with parts.db.read() as tx:
        kept = store.secrets(tx, tenant)
    for secret in kept:
        if _key_of(secret.value):
            yield Piece(f"jobs/{secret.job}", partial(_reseal, parts, secret))


def _reseal(parts: Parts, secret: Secret, key: DataKey) -> bool:
    """See Piece."""
    if _key_of(secret.value) == key.id:
        return False
    fresh = _sealed(secret, _opened(parts.keys, secret), key)
    with parts.db.write() as tx:
        return store.change_secret(tx, secret, fresh.value)


def _key_of(text: str) -> str:
    """The id of the data key that a kept text is sealed with; "" for one in the clear."""
    sealed = text.startswith(_SEALED)
    return sealed_with(base64.b64decode(text.removeprefix(_SEALED))) if sealed else ""


def _sealed(secret: Secret, value: str, key: DataKey) -> Secret:
    data = sealed_bytes(value.encode(), key, *_place(secret))
    return secret._replace(value=_SEALED + base64.b64encode(data).decode())


def _opened(keys: Keyring | None, secret: Secret) -> str:
    if not secret.value.startswith(_SEALED):
        return secret.value
    if keys is None:
        raise TapsterError(
            "unavailable",
            "what this job must know is sealed, and no master key is set",
            hint="set the master key as before",
        )
    data = base64.b64decode(secret.value.removeprefix(_SEALED))
    return opened_bytes(data, partial(keys.find, secret.tenant), *_place(secret)).decode()


def _place(secret: Secret) -> tuple[str, str, str]:
    return secret.tenant, f"jobs/{secret.job}", f"secret {secret.field}"
