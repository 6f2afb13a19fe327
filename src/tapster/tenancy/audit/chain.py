"""Lines join the chain: in the transaction they tell of, one after another."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection

from tapster.contract.audit import AuditLine, chained, details_digest, micros, spelled
from tapster.tenancy.audit import store
from tapster.tenancy.audit.telling import Draft


def append(tx: Connection, drafts: Sequence[Draft]) -> int:
    """Add lines; the last one's number. The head is held until the commit, so call this last."""
    number, before = store.lock_head(tx)
    own: dict[str, str] = {}
    made, kept = [], []
    for draft in drafts:
        if draft.tenant not in own:
            own[draft.tenant] = store.newest(tx, draft.tenant)[1]
        number += 1
        body = spelled(draft.client, draft.object, draft.before, draft.after)
        salt = secrets.token_hex(16)
        line = _columns(draft, number, details_digest(salt, body), own[draft.tenant])
        digest = chained(before, line)
        made.append((*line, before, digest))
        kept.append((number, draft.tenant, salt, body))
        own[draft.tenant] = before = digest
    store.append(tx, made, kept)
    return number


def _columns(draft: Draft, number: int, details: str, own: str) -> tuple[Any, ...]:
    """What is hashed of a line, in the order that the format says."""
    return (
        number,
        micros(draft.at),
        draft.tenant,
        draft.who,
        draft.action,
        draft.status,
        draft.code,
        draft.count,
        details,
        own,
    )


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
