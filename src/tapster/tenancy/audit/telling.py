"""From what was seen to what is written down: small, and without anything secret."""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tapster.core.changes import HIDDEN, Changes, Row
from tapster.tenancy.audit.acts import SYSTEM, Act, Muted, Remark

MOST_BYTES: Final = 4096
_MORE: Final = "..."
_TEXT: Final = 300
_DEPTH: Final = 7
# Texts and lists are cut to these lengths, one after the other, until the whole is small enough.
_CUTS: Final = ((_TEXT, 24), (80, 8), (24, 3))

_NAMES: Final = re.compile(
    r"(^|[_-])(passwords?|passwd|passphrase|secrets?|tokens?|credentials?|authorization|cookies?"
    r"|api_?keys?|private_?keys?)([_-]|$)",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)(\S+)")
_VALUES: Final = re.compile(
    r"ta[ps]_[A-Za-z0-9_-]{16,}"
    r"|-----BEGIN .*"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"  # tokens of RFC 7519
    r"|\$argon2[a-z]*\$\S+"
    r"|(?i:\b(?:bearer|basic) [A-Za-z0-9+/_.=-]{8,})",
    re.DOTALL,
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass
class Draft:
    """A line to be: everything but its place in the chain. Texts are as they may be shown."""

    tenant: str
    who: str
    client: str
    action: str
    object: str
    status: int
    code: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    count: int = 1
    at: float = field(default_factory=time.time)


def drafts(act: Act | None, changes: Changes) -> list[Draft]:
    """The lines of a transaction: one a tenant whose rows it changed, and those remarked on."""
    muted = {name for each in changes.remarks if isinstance(each, Muted) for name in each.tenants}
    remarks = [each for each in changes.remarks if isinstance(each, Remark) and not each.alone]
    alone = [each for each in changes.remarks if isinstance(each, Remark) and each.alone]
    made: list[Draft] = []
    by_tenant: dict[str, list[Row]] = {}
    for row in changes.rows:
        by_tenant.setdefault(row.tenant, []).append(row)
    if act is not None and len(by_tenant) > 1 and "" in by_tenant:
        by_tenant.setdefault(act.whose, []).extend(by_tenant.pop(""))
    for tenant, rows in by_tenant.items():
        assert act is not None
        whose = tenant or act.whose
        said = [each for each in remarks if each.tenant == whose]
        if act.scope is None and said:  # the work of the system has a better name
            remarks.remove(said[0])
        made.append(_of_rows(act, whose, [] if whose in muted else rows, said, changes.more))
    if act is None or act.scope is None or not made:
        made += [_of_remark(act, each) for each in remarks]
    return made + [_of_remark(act, each) for each in alone]


def _of_rows(act: Act, tenant: str, rows: list[Row], said: list[Remark], more: int) -> Draft:
    own = [f"{table_noun(row.table)}={_identity(row)}" for row in rows if row.identity]
    first = said[0] if said else None
    named = first is not None and act.scope is None
    target = act.target or (first.object if first else "") or (own[0] if own else "")
    extra = {**_told(first, "after"), **({"more_rows": more} if more else {})}
    return draft(
        act,
        tenant=tenant,
        action=first.verb if first and named else act.action,
        target=target,
        before=small({**_grouped(rows, "before"), **_told(first, "before")}),
        after=small({**_grouped(rows, "after"), **extra}),
    )


def _of_remark(act: Act | None, said: Remark) -> Draft:
    request = act is not None and act.scope is not None
    return draft(
        act,
        tenant=said.tenant,
        action=act.action if act is not None and request and not said.alone else said.verb,
        target=said.object or (act.target if act else ""),
        before=small(said.before),
        after=small(said.after),
    )


def draft(
    act: Act | None,
    *,
    tenant: str,
    action: str,
    target: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    status: int = 0,
    code: str = "",
) -> Draft:
    """A line about an act, in texts that fit and that any database can hold."""
    return Draft(
        tenant=_text(tenant, 64),
        who=_text(act.who if act else SYSTEM, 64),
        client=_text(act.client if act else "", 64),
        action=_text(action, 200),
        object=_text(target, _TEXT),
        status=status or (act.success if act else 200),
        code=code,
        before=before,
        after=after,
    )


def table_noun(table: str) -> str:
    """A table's name as one thing: `endpoints` is an endpoint."""
    return table.removesuffix("s").replace("_", "-")


def small(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`found` without secrets, in at most 4 KiB of JSON; None for nothing."""
    if not found:
        return None
    for text, items in _CUTS:
        cut = {_text(str(k), 100): _plain(v, str(k), text, items, 1) for k, v in found.items()}
        if len(json.dumps(cut)) <= MOST_BYTES:
            return cut
    return {"too_large": sorted(_text(str(name), 60) for name in found)[:16]}


def _plain(value: Any, name: str, text: int, items: int, depth: int) -> Any:
    """A value as JSON, cut down; what a secret's name promises is hidden."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if _NAMES.search(name):
        return HIDDEN
    if isinstance(value, str):
        return _text(value, text)
    return _nested(value, name, text, items, depth + 1)


def _nested(value: Any, name: str, text: int, items: int, depth: int) -> Any:
    """The first items of something that holds others."""
    if depth > _DEPTH:
        return _MORE
    if isinstance(value, Mapping):
        kept = list(value.items())[: items * 2]
        cut = {_text(str(k), 100): _plain(v, str(k), text, items, depth) for k, v in kept}
        return {**cut, _MORE: len(value) - len(kept)} if len(value) > len(kept) else cut
    if not isinstance(value, list | tuple | set | frozenset):
        return f"({type(value).__name__})"
    shown = [_plain(each, name, text, items, depth) for each in list(value)[:items]]
    return [*shown, _MORE] if len(value) > items else shown


def _text(text: str, length: int) -> str:
    """A text without secrets and control characters, cut to a length."""
    if len(text) > 4 * length + 256:
        text = text[: 4 * length + 256]
    if len(text) >= 8:
        text = _VALUES.sub("***", _URL.sub(_bare, text))
    text = _CONTROL.sub("\ufffd", text)
    return text if len(text) <= length else text[: length - 3] + _MORE


def _bare(found: re.Match[str]) -> str:
    """A URL without a user, a password, options and a fragment."""
    place = re.split(r"[?#]", found[2], maxsplit=1)
    after = "?***" if len(place) > 1 else ""
    user, sign, rest = place[0].rpartition("@")
    if len(place) > 1 and "@" in place[1]:  # where a password ends is anybody's guess
        return f"{found[1]}***"
    return f"{found[1]}{'***@' if sign else ''}{rest if user or sign else place[0]}{after}"


def _identity(row: Row) -> str:
    """What people call a row: its name, else its id, else its key's parts."""
    for name in ("name", "id"):
        if row.identity.get(name):
            return str(row.identity[name])
    return "/".join(str(value) for value in row.identity.values())


def _grouped(rows: list[Row], side: str) -> dict[str, Any]:
    """Rows by table, as they were before or are after."""
    found: dict[str, Any] = {}
    for row in rows:
        values = getattr(row, side)
        if values is not None:
            known = {k: v for k, v in values.items() if k != "tenant" and v is not None}
            found.setdefault(row.table, []).append({**row.identity, **known})
    return found


def _told(said: Remark | None, side: str) -> dict[str, Any]:
    told: dict[str, Any] | None = getattr(said, side) if said is not None else None
    return told or {}
