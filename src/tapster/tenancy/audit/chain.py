"""Lines join the chain: in the transaction they tell of, one after another."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection

from tapster.contract.audit import AuditLine, details_digest, line_hash, micros, spelled
from tapster.tenancy.audit import store
from tapster.tenancy.audit.telling import Draft

_KEPT = ("salt", "client", "object", "before", "after")


def append(tx: Connection, drafts: Sequence[Draft]) -> int:
    """Add lines; the last one's number. The head is held until the commit, so call this last."""
    number, before = store.lock_head(tx)
    own: dict[str, str] = {}
    made, kept = [], []
    for draft in drafts:
        if draft.tenant not in own:
            own[draft.tenant] = store.newest(tx, draft.tenant)[1]
        number += 1
        line, body = _line(draft, number, before, own[draft.tenant])
        own[draft.tenant] = before = line.hash
        row = asdict(line)
        made.append({**{n: v for n, v in row.items() if n not in _KEPT}, "at": micros(line.at)})
        kept.append({"number": number, "tenant": line.tenant, "salt": line.salt, "body": body})
    store.append(tx, made, kept)
    return number


def _line(draft: Draft, number: int, previous: str, own: str) -> tuple[AuditLine, str]:
    """A draft in its place, and its details as they are stored."""
    body = spelled(draft.client, draft.object, draft.before, draft.after)
    salt = secrets.token_hex(16)
    line = AuditLine(
        number=number,
        at=micros(draft.at) / 1_000_000,
        tenant=draft.tenant,
        who=draft.who,
        action=draft.action,
        status=draft.status,
        code=draft.code,
        count=draft.count,
        details=details_digest(salt, body),
        previous=previous,
        own_previous=own,
        hash="",
        salt=salt,
    )
    return replace(line, hash=line_hash(line)), body


def told(line: AuditLine, body: str) -> AuditLine:
    """A line with its details as they were stored; without them, as one whose are gone."""
    if not line.salt:
        return line
    try:
        client, what, before, after = json.loads(body)
    except (ValueError, TypeError):
        return replace(line, client="(unreadable)")
    return replace(line, client=client, object=what, before=before, after=after)


def as_json(found: Any) -> bytes:
    """A line, a head or a seal as one line of JSON."""
    return json.dumps(asdict(found), separators=(",", ":")).encode() + b"\n"
