"""Verbs over API keys: make, list, rotate, revoke; and whose key one is."""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Key, Principal
from tapster.contract.errors import TapsterError
from tapster.contract.plan import KeyGrant
from tapster.core.crypto import KEY_PREFIX, key_digest, new_id, new_key
from tapster.tenancy.keys import store
from tapster.tenancy.revisions import revise
from tapster.tenancy.rights import ROLES
from tapster.tenancy.roles import service as roles
from tapster.tenancy.tenants import service as tenants

MAX_KEY: Final = 256
SHOWN: Final = 12
LONGEST_LIFE: Final = 20 * 366 * 86400.0
LONGEST_OVERLAP: Final = 30 * 86400.0
_NAME: Final = 100
_PLANNED: Final = {role: tuple(sorted(rights)) for role, rights in ROLES.items()}
_MOST: Final = 1000
_ENDPOINT: Final = re.compile(r"(?:[a-z0-9-]{1,63}--)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def make(
    tx: Connection,
    who: Principal,
    *,
    name: str = "",
    role: str = "",
    rights: Sequence[str] = (),
    endpoints: Sequence[str] = (),
    reach: Sequence[str] = (),
    expires_in: float | None = None,
) -> Key:
    """A new key of the tenant that is asked for, secret included; `expires_in` seconds.

    It has the rights of `role`, or `rights`; `reach` are tenants that it may act for. Raises
    TapsterError(invalid) for what cannot be, (forbidden) for more than the caller holds.
    """
    _check(tx, who, name=name, role=role, rights=rights, endpoints=endpoints, reach=reach)
    identifier, secret, now = new_id("key"), new_key(), time.time()
    store.add(
        tx,
        who.tenant,
        identifier,
        key_digest(secret),
        rights=[] if role else sorted(set(rights)),
        role=role,
        name=name,
        prefix=secret[:SHOWN],
        made_by=who.member or who.key_id,
        endpoints=sorted(set(endpoints)),
        tenants=sorted(set(reach)),
        expires=_end(now, expires_in),
    )
    revise(tx, who.tenant, f"key {identifier} made", kind="key", ref=identifier)
    return _with_secret(show(tx, who.tenant, identifier), secret)


def show(tx: Connection, tenant: str, identifier: str) -> Key:
    """One key. Raises TapsterError(not_found)."""
    return _key(tx, _row(tx, tenant, identifier))


def listing(tx: Connection, tenant: str) -> list[Key]:
    """A tenant's keys, newest first, those that are no longer valid among them."""
    return [_key(tx, row) for row in store.listing(tx, tenant)]


def rotate(
    tx: Connection,
    who: Principal,
    identifier: str,
    *,
    overlap: float = 0.0,
    expires_in: float | None = None,
) -> Key:
    """Give a key another secret; the former one is valid for `overlap` seconds more.

    Its id, rights and scope stay, and its end unless `expires_in` (seconds) sets another. Raises
    TapsterError(conflict) for a key that is revoked or expired, (forbidden) for one that permits
    more than the caller may.
    """
    row = _row(tx, who.tenant, identifier)
    now = time.time()
    if _status(row, now) != "active":
        raise TapsterError("conflict", f"key {identifier} is {_status(row, now)}")
    if not 0 <= overlap <= LONGEST_OVERLAP:
        raise TapsterError("invalid", "the overlap is 0 to 30 days", field="overlap")
    roles.check_held(who, _rights(tx, row))
    roles.check_reach(who, row["tenants"] or ())
    secret = new_key()
    expires = row["expires"] if expires_in is None else _end(now, expires_in)
    ends = [each for each in (row["expires"], expires) if each is not None]
    end = min([now + overlap, *ends])
    store.change(
        tx,
        who.tenant,
        identifier,
        digest=key_digest(secret),
        prefix=secret[:SHOWN],
        old_digest=row["digest"] if overlap else None,
        old_expires=end if overlap else None,
        expires=expires,
    )
    revise(tx, who.tenant, f"key {identifier} rotated", kind="key", ref=identifier)
    return _with_secret(show(tx, who.tenant, identifier), secret)


def revoke(tx: Connection, tenant: str, identifier: str) -> Key:
    """End a key now and for good. Raises TapsterError(not_found)."""
    row = _row(tx, tenant, identifier)
    if row["revoked"] is None:
        store.change(tx, tenant, identifier, revoked=time.time(), old_digest=None)
        revise(tx, tenant, f"key {identifier} revoked", kind="key", ref=identifier)
    return show(tx, tenant, identifier)


def administer(tx: Connection, identifier: str, key: str) -> None:
    """Let `key`, of the installation's tenant, do everything, instead of any of this id."""
    if (row := store.find(tx, key_digest(key))) is not None:
        if row["id"] == identifier and row["tenants"] is None:  # made before keys had names
            named = {"name": "admin", "prefix": key[:SHOWN], "tenants": ["*"]}
            store.change(tx, DEFAULT_TENANT, identifier, **named)
        return
    store.remove(tx, DEFAULT_TENANT, identifier)
    store.add(
        tx,
        DEFAULT_TENANT,
        identifier,
        key_digest(key),
        rights=["*"],
        name="admin",
        prefix=key[:SHOWN],
        tenants=["*"],
    )
    revise(tx, DEFAULT_TENANT, "admin key", kind="key", ref=identifier)


def authenticate(tx: Connection, key: str) -> Principal | None:
    """Whose key this is; None when it is malformed, unknown, revoked, expired or suspended."""
    row = _valid(tx, key)
    if row is None or not tenants.active(tx, row["tenant"]):
        return None
    return Principal(
        row["tenant"],
        row["id"],
        _rights(tx, row),
        tenants=frozenset(row["tenants"] or ()),
        endpoints=frozenset(row["endpoints"] or ()),
        name=row["name"],
    )


def suspended(tx: Connection, key: str) -> str:
    """The tenant that is suspended, and that this key is a valid one of; "" if there is none."""
    row = _valid(tx, key)
    return "" if row is None or tenants.active(tx, row["tenant"]) else str(row["tenant"])


def grants(
    tx: Connection, only: Sequence[str] = (), after: str = "", most: int = 0
) -> list[KeyGrant]:
    """Every key that is valid as the data plane must know it, in order of ids; `only` these ids,
    or so many at `most`, beyond the id `after`.

    A key that was rotated is there twice, under one id, until its former secret ends. Keys of
    tenants that are suspended are there too: their tenant's standing keeps them out.
    """
    made, now = roles.everywhere(tx), time.time()
    found = []
    for row in store.valid(tx, now, only, after, most):
        held = row["rights"]
        if row["role"] in ROLES:
            held = _PLANNED[row["role"]]
        elif row["role"]:
            held = made.get((row["tenant"], row["role"]), [])
        ends = [(row["digest"], row["expires"])]
        if row["old_digest"] and row["old_expires"] > now:
            ends.append((row["old_digest"], row["old_expires"]))
        for digest, expires in ends:
            names = tuple(row["endpoints"] or ())
            found.append(
                KeyGrant(row["id"], digest, row["tenant"], tuple(held), expires, endpoints=names)
            )
    return found


def role_changed(tx: Connection, tenant: str, role: str) -> None:
    """Tell data planes of the keys whose role permits something else now."""
    for identifier in store.of_role(tx, tenant, role):
        revise(tx, tenant, f"role {role} changed", kind="key", ref=identifier)


def has_role(tx: Connection, tenant: str, role: str) -> bool:
    """Whether a key that is not revoked has a role."""
    return bool(store.of_role(tx, tenant, role))


def forget_reach(tx: Connection, tenant: str) -> None:
    """Let no key act for a tenant that is no more: whoever has its name next is somebody else."""
    for row in store.listing(tx, DEFAULT_TENANT):
        if tenant in (reach := row["tenants"] or ()):
            left = [each for each in reach if each != tenant]
            store.change(tx, DEFAULT_TENANT, row["id"], tenants=left)


def used(tx: Connection, times: dict[str, float]) -> None:
    """Remember when keys (ids) were last used."""
    for identifier, at in times.items():
        store.used(tx, identifier, at)


def _valid(tx: Connection, key: str) -> Any:
    """The row of a key that is neither malformed nor unknown, revoked or expired; or None."""
    if not key.startswith(KEY_PREFIX) or len(key) > MAX_KEY or not key.isascii():
        return None
    digest, now = key_digest(key), time.time()
    row = store.find(tx, digest)
    if row is None or _status(row, now) != "active":
        return None
    former = row["digest"] != digest and not (row["old_expires"] or 0) > now
    return None if former else row


def _check(
    tx: Connection,
    who: Principal,
    *,
    name: str,
    role: str,
    rights: Sequence[str],
    endpoints: Sequence[str],
    reach: Sequence[str],
) -> None:
    if len(name) > _NAME:
        raise TapsterError("invalid", f"the name is longer than {_NAME} characters", field="name")
    if bool(role) == bool(rights):
        raise TapsterError(
            "invalid",
            "a key has either a role or rights of its own",
            hint="such as the role consumer, to ask endpoints",
            field="role",
        )
    if role:
        roles.check_role(tx, who, role)
    else:
        roles.check_rights(rights)
        roles.check_held(who, rights)
    for each in endpoints:
        if not _ENDPOINT.fullmatch(each) or len(endpoints) > _MOST:
            raise TapsterError(
                "invalid",
                f"{each[:100]!r} cannot be the name of an endpoint",
                hint="write NAME, or OWNER--NAME for one that is shared",
                field="endpoints",
            )
    _check_reach(tx, who, reach)


def _check_reach(tx: Connection, who: Principal, reach: Sequence[str]) -> None:
    if not reach:
        return
    if who.tenant != DEFAULT_TENANT or len(reach) > _MOST:
        raise TapsterError(
            "forbidden", "only the installation's own keys can act for tenants", field="tenants"
        )
    roles.check_reach(who, reach)
    for each in reach:
        if each != "*":
            tenants.show(tx, each)


def _end(now: float, expires_in: float | None) -> float | None:
    if expires_in is None:
        return None
    if not 0 < expires_in <= LONGEST_LIFE:
        raise TapsterError(
            "invalid", "a key ends after a moment to 20 years, or never", field="expires_in"
        )
    return now + expires_in


def _row(tx: Connection, tenant: str, identifier: str) -> Any:
    row = store.get(tx, tenant, identifier)
    if row is None:
        raise TapsterError(
            "not_found", f"there is no key {identifier[:100]!r}", hint="see `tapster keys list`"
        )
    return row


def _rights(tx: Connection, row: Any) -> frozenset[str]:
    if row["role"]:
        return roles.rights_of(tx, row["tenant"], row["role"])
    return frozenset(row["rights"])


def _status(row: Any, now: float) -> str:
    if row["revoked"] is not None:
        return "revoked"
    return "expired" if row["expires"] is not None and row["expires"] <= now else "active"


def _key(tx: Connection, row: Any) -> Key:
    now = time.time()
    old = row["old_expires"] if row["old_digest"] else None
    return Key(
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        prefix=row["prefix"],
        role=row["role"],
        rights=sorted(_rights(tx, row)),
        endpoints=list(row["endpoints"] or ()),
        tenants=list(row["tenants"] or ()),
        status=_status(row, now),
        made_by=row["made_by"],
        created=row["created"],
        expires=row["expires"],
        last_used=row["last_used"],
        overlap=old if old is not None and old > now else None,
    )


def _with_secret(key: Key, secret: str) -> Key:
    return replace(key, key=secret)
