"""Verbs over sessions: open, find, list, end."""

import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import Principal, Session
from tapster.contract.errors import TapsterError
from tapster.contract.plan import KeyGrant
from tapster.core.crypto import SESSION_PREFIX, key_digest, new_id, new_key
from tapster.tenancy.members import service as members
from tapster.tenancy.revisions import revise
from tapster.tenancy.roles import service as roles
from tapster.tenancy.sessions import store
from tapster.tenancy.sessions.oidc import Pending
from tapster.tenancy.tenants import service as tenants

MAX_TOKEN: Final = 256
SIGN_IN_SECONDS: Final = 600.0


def start(tx: Connection, row: Any, how: str, address: str, seconds: float) -> Session:
    """A new session of a member (their row) that lasts `seconds`, token included."""
    identifier, token = new_id("ses"), new_key(SESSION_PREFIX)
    store.add(
        tx,
        row["tenant"],
        identifier,
        member=row["id"],
        digest=key_digest(token),
        how=how,
        address=address[:64],
        expires=time.time() + seconds,
    )
    members.seen(tx, row["tenant"], row["id"])
    revise(tx, row["tenant"], f"session {identifier} begins", kind="key", ref=identifier)
    return _session(store.get(tx, row["tenant"], identifier), row["name"], token)


def begin(tx: Connection, tenant: str, pending: Pending) -> str:
    """Remember a sign-in under way; returns the secret that whoever ends it must have."""
    secret = new_key(SESSION_PREFIX)
    store.begin(
        tx,
        tenant if tenants.proper(tenant) else "",
        key_digest(pending.state),
        secret=key_digest(secret),
        nonce=pending.nonce,
        verifier=pending.verifier,
        redirect=pending.redirect,
        expires=time.time() + SIGN_IN_SECONDS,
    )
    return secret


def take(tx: Connection, state: str) -> Any:
    """The sign-in that was begun with a state, once; else None."""
    return store.take(tx, key_digest(state))


def authenticate(tx: Connection, token: str) -> Principal | None:
    """Who is signed in with a token; None when it is malformed, unknown, ended or barred."""
    if not token.startswith(SESSION_PREFIX) or len(token) > MAX_TOKEN or not token.isascii():
        return None
    session = store.find(tx, key_digest(token))
    if session is None or session["expires"] <= time.time():
        return None
    tenant = session["tenant"]
    row = members.by_id(tx, tenant, session["member"])
    if row is None or not tenants.active(tx, tenant):
        return None
    return Principal(
        tenant,
        session["id"],
        roles.rights_of(tx, tenant, row["role"]),
        tenants=frozenset(row["tenants"]),
        member=row["id"],
        name=row["name"],
    )


def grants(tx: Connection, only: Sequence[str] = ()) -> list[KeyGrant]:
    """Every session as the data plane must know it: a key that ends soon. `only` these ids."""
    found = []
    for session in store.valid(tx, time.time(), only):
        tenant = session["tenant"]
        row = members.by_id(tx, tenant, session["member"])
        if row is None:
            continue
        held = tuple(sorted(roles.rights_of(tx, tenant, row["role"])))
        found.append(KeyGrant(session["id"], session["digest"], tenant, held, session["expires"]))
    return found


def listing(tx: Connection, tenant: str, member: str = "") -> list[Session]:
    """The sessions of a tenant, or of one of its members (id), newest first."""
    names = {each.id: each.name for each in members.listing(tx, tenant)}
    rows = store.listing(tx, tenant, member)
    return [_session(row, names.get(row["member"], "")) for row in rows]


def end(tx: Connection, who: Principal, identifier: str) -> Session:
    """End a session. Raises TapsterError(not_found); (forbidden) unless it is the caller's own, or

    they may change members and hold all that its member holds.
    """
    row = store.get(tx, who.tenant, identifier)
    may = who.may("members:write") and not who.endpoints
    if row is None or not (row["member"] == who.member or may):
        raise TapsterError("not_found", f"there is no session {identifier[:100]!r}")
    member = members.theirs(tx, who, row["member"])
    _end(tx, row)
    return _session(row, member["name"])


def end_all(tx: Connection, tenant: str, member: str, but: str = "") -> None:
    """End every session of a member (id) but one."""
    for row in store.listing(tx, tenant, member):
        if row["id"] != but:
            _end(tx, row)


def role_changed(tx: Connection, tenant: str, role: str) -> None:
    """Tell data planes of the sessions of members whose role permits something else now."""
    for member in members.of_role(tx, tenant, role):
        member_changed(tx, tenant, member)


def member_changed(tx: Connection, tenant: str, member: str) -> None:
    """Tell data planes of the sessions of a member who has another role now."""
    for row in store.listing(tx, tenant, member):
        what = f"session {row['id']} may do something else"
        revise(tx, tenant, what, kind="key", ref=row["id"])


def used(tx: Connection, times: dict[str, float]) -> None:
    """Remember when sessions (ids) were last used."""
    for identifier, at in times.items():
        store.used(tx, identifier, at)


def _end(tx: Connection, row: Any) -> None:
    store.remove(tx, row["tenant"], row["id"])
    revise(tx, row["tenant"], f"session {row['id']} ends", kind="key", ref=row["id"])


def _session(row: Any, name: str, token: str = "") -> Session:
    return Session(
        id=row["id"],
        tenant=row["tenant"],
        member=row["member"],
        name=name,
        how=row["how"],
        address=row["address"],
        created=row["created"],
        expires=row["expires"],
        last_used=row["last_used"],
        token=token,
    )
