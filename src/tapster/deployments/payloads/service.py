"""Verbs over payloads: write them down, by which rules; agree, take them in, delete.

Hashes are keyed with a salt that an endpoint has for good: what was equal stays so, whatever else
of the rules changes.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.contract.plan import PayloadRules
from tapster.core import redaction
from tapster.deployments import store as endpoints
from tapster.deployments.payloads import store
from tapster.deployments.sharing import service as sharing
from tapster.deployments.store import Row
from tapster.registry import service as registry
from tapster.tenancy import service as tenancy

DEFAULT: Final = ("email", "iban", "card", "ip", "phone")
WEEK: Final = 7 * 86400.0
LONGEST: Final = 10 * 366 * 86400.0
LARGEST: Final = 1 << 20
MOST_COLUMNS: Final = 1000
_ENDPOINT: Final = "endpoint"


@dataclass(frozen=True)
class Wanted:
    """What an owner asks for; see PayloadRules. `keep` in seconds."""

    sample: float = 1.0
    patterns: tuple[str, ...] = DEFAULT
    expressions: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()
    size: int = 16384
    keep: float = field(default=WEEK)


def switch_on(tx: Connection, tenant: str, name: str, wanted: Wanted) -> None:
    """Have payloads of an endpoint written down from now on, by these rules.

    Raises TapsterError(not_found) for the endpoint, (invalid) for rules that cannot be, among them
    those about columns that nothing behind the endpoint has.
    """
    row = _known(tx, tenant, name)
    _check(wanted)
    _check_columns(tx, row, wanted)
    found = asdict(wanted)
    keep = found.pop("keep")
    store.put(tx, tenant, name, rules=found, keep=keep, salt=secrets.token_hex(32))
    tenancy.revise(tx, tenant, f"payloads of {name} logged", kind=_ENDPOINT, ref=row.id)


def switch_off(tx: Connection, tenant: str, name: str) -> None:
    """Have nothing more written down; what there is stays for as long as it was to be kept.

    Raises TapsterError(not_found) for the endpoint.
    """
    row = _known(tx, tenant, name)
    if store.stop(tx, tenant, name):
        tenancy.revise(tx, tenant, f"payloads of {name} not logged", kind=_ENDPOINT, ref=row.id)


def shown(tx: Connection, tenant: str, name: str) -> dict[str, Any] | None:
    """The rules of a tenant's endpoint, and who agrees with them; None if none are in force."""
    return every(tx, tenant).get(name)


def every(tx: Connection, tenant: str) -> dict[str, dict[str, Any]]:
    """The rules in force of a tenant's endpoints, and who agrees with them, by name."""
    found = store.active(tx, [tenant])
    agreed = store.consumers(tx, [tenant]) if found else {}
    return {
        row["endpoint"]: {
            **row["rules"],
            "keep": row["keep"],
            "agreed": list(agreed.get((tenant, row["endpoint"]), ())),
        }
        for row in found
    }


def planned(
    tx: Connection, owners: Collection[str], keys: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], PayloadRules]:
    """The rules in force of these owners' endpoints, by owner and name, for the plan.

    `keys` are owners' wrapped data keys; of several the first is in force.
    """
    found = store.active(tx, owners)
    consumers = store.consumers(tx, owners) if found else {}
    return {
        (row["tenant"], row["endpoint"]): msgspec.convert(
            {
                **row["rules"],
                "salt": row["salt"],
                "consumers": consumers.get((row["tenant"], row["endpoint"]), ()),
                "secret": keys.get(row["tenant"], ("",))[0],
            },
            PayloadRules,
        )
        for row in found
    }


def agree(tx: Connection, tenant: str, called: str, *, agrees: bool) -> dict[str, Any]:
    """Let an owner write down what a tenant asks of its endpoint, or no longer.

    Raises TapsterError(not_found) for an endpoint that the tenant may not call, (invalid) for one
    of its own.
    """
    owner, name = sharing.callee(tx, tenant, called) or ("", "")
    row = endpoints.get(tx, owner, name) if owner else None
    if row is None:
        raise _missing(called)
    if owner == tenant:
        raise TapsterError(
            "invalid",
            f"endpoint {called} is yours: what it is asked is yours to log",
            hint=f"tapster endpoints log {called}",
            field="endpoint",
        )
    change = store.agree if agrees else store.disagree
    if change(tx, tenant, owner, name):
        tenancy.revise(tx, owner, f"who agrees on {name}", kind=_ENDPOINT, ref=row.id)
    return {"endpoint": called, "owner": owner, "agreed": agrees}


def check(tx: Connection, tenant: str, name: str) -> None:
    """Raise TapsterError(not_found) unless the endpoint is the tenant's own."""
    _known(tx, tenant, name)


def delete(tx: Connection, tenant: str, name: str) -> int:
    """Let nobody see the payloads of an endpoint any more; how many they were.

    Raises TapsterError(not_found) for the endpoint.
    """
    _known(tx, tenant, name)
    return store.drop_all(tx, tenant, name)


def forget(tx: Connection, tenant: str, name: str) -> None:
    """An endpoint is about to go, and with it all that was written down of it."""
    store.forget(tx, tenant, name)


def stored(tx: Connection) -> dict[str, int]:
    """Bytes of payloads of any tenant, by tenant."""
    return store.sizes(tx)


def blob_keys(tx: Connection) -> set[str]:
    """The blobs that hold payloads."""
    return store.blob_keys(tx)


def endpoint_of(tx: Connection, tenant: str, identifier: str) -> str | None:
    """The name of a tenant's endpoint; None if there is none by this id."""
    names = [row.name for row in endpoints.listing(tx, tenant) if row.id == identifier]
    return names[0] if names else None


def _known(tx: Connection, tenant: str, name: str) -> Row:
    row = endpoints.get(tx, tenant, name)
    if row is None:
        raise _missing(name)
    return row


def _missing(name: str) -> TapsterError:
    return TapsterError(
        "not_found", f"there is no endpoint {name!r}", hint="see `tapster endpoints list`"
    )


def _check(wanted: Wanted) -> None:
    for name, good, needed in (
        ("sample", 0 < wanted.sample <= 1, "a share above 0, up to 1"),
        ("keep", 60 <= wanted.keep <= LONGEST, "from 60 seconds to ten years"),
        ("size", 256 <= wanted.size <= LARGEST, f"from 256 to {LARGEST} bytes"),
    ):
        if not good:
            raise TapsterError("invalid", f"{name} must be {needed}", field=name)
    redaction.check(wanted.patterns, wanted.expressions)
    columns = [*wanted.drop, *wanted.mask, *wanted.hash]
    if len(columns) > MOST_COLUMNS:
        raise TapsterError(
            "invalid", f"there are rules for more than {MOST_COLUMNS} columns", field="columns"
        )
    for name in columns:
        if not 0 < len(name) <= 200 or not name.isprintable():
            raise TapsterError(
                "invalid", "a column's name is 1 to 200 printable characters", field="columns"
            )
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise TapsterError("invalid", f"column {twice[0]!r} has two rules", field="columns")


def _check_columns(tx: Connection, row: Row, wanted: Wanted) -> None:
    """Rules for columns that are nowhere would redact nothing, and nobody would see it."""
    known: dict[str, None] = {}
    for held in {each.ref: each for serving in row.sets for each in serving.variants}.values():
        owner, ref = held.owner or row.tenant, f"{held.model}@{held.version}"
        signature = registry.resolve(tx, owner, ref).signature
        for part in ("columns", "inputs", "outputs"):
            known |= dict.fromkeys(each["name"] for each in signature.get(part, []))
    for name in (*wanted.drop, *wanted.mask, *wanted.hash):
        if known and name not in known:
            raise TapsterError(
                "invalid",
                f"nothing behind {row.name} has a column {name!r}",
                hint=f"there are: {', '.join(known)}"[:400],
                field="columns",
            )
