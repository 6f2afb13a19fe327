"""Files of payloads: taking in what data planes send, reading, and forgetting in time.

A file is a blob, `tenant/payloads/id`, of one endpoint and day (UTC): JSON lines in gzip members,
sealed like any blob of its tenant. A segment that comes is put at the end of the day's newest file
while that is small. Every payload has a `record` of its own, so one that came twice is given once.
"""

import tempfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.core.crypto import new_id
from tapster.core.frames import frames
from tapster.core.parts import Parts
from tapster.core.telemetry import logger
from tapster.deployments.payloads import service, store

log = logger(__name__)

KIND: Final = "payloads"
NAME: Final = "payloads.jsonl.gz"
# A file that has as many bytes does not grow.
FULL: Final = 1 << 20
_GZIP: Final = 31  # zlib's number for gzip with the largest window


class _Line(msgspec.Struct):
    record: str
    time: float


_LINES: Final = msgspec.json.Decoder(_Line)


class _Part(NamedTuple):
    """The payloads of a day, as they came."""

    day: str
    lines: list[bytes]
    first: float
    last: float


def take(parts: Parts, tenant: str, endpoint: str, segment: str, data: bytes) -> bool:
    """Take in a segment of an endpoint (id); False for one that nobody wants any more.

    Raises TapsterError for one that does not open.
    """
    with parts.db.read() as tx:
        name = service.endpoint_of(tx, tenant, endpoint)
        kept = store.get(tx, tenant, name) if name is not None else None
    if name is None or kept is None:
        return False
    find = None if parts.keys is None else partial(parts.keys.find, tenant)
    lines = b"".join(frames(data, find, tenant, KIND, segment)).splitlines()
    try:
        days = list(_days(lines, kept["since"]))
    except msgspec.MsgspecError:
        raise TapsterError("unprocessable", "a segment holds something else") from None
    for part in days:
        _append(parts, tenant, name, part)
    return True


def read(parts: Parts, tenant: str, name: str, since: float) -> Iterator[bytes]:
    """The payloads of an endpoint from `since` on, as JSON lines, oldest files first.

    A file that goes while others are read may have been put into another: what there is then is
    looked at again.
    """
    seen: set[str] = set()
    done: set[str] = set()
    while True:
        with parts.db.read() as tx:
            found = store.of_endpoint(tx, tenant, name, since)
        for row in (row for row in found if row.id not in done):
            done.add(row.id)
            try:
                lines = _content(parts, tenant, row.id)
            except TapsterError as error:
                if error.code != "not_found":
                    raise
                break
            for line in lines:
                payload = _LINES.decode(line)
                if payload.time >= since and payload.record not in seen:
                    seen.add(payload.record)
                    yield line + b"\n"
        else:
            return


def latest(parts: Parts, tenant: str, name: str, since: float, limit: int) -> list[Any]:
    """The newest payloads of an endpoint, newest first."""
    with parts.db.read() as tx:
        service.check(tx, tenant, name)
        rows = store.of_endpoint(tx, tenant, name, since)
    found: dict[str, dict[str, Any]] = {}
    for at, row in reversed(list(enumerate(rows))):
        for line in _content(parts, tenant, row.id):
            payload = msgspec.json.decode(line)
            if payload["time"] >= since:
                found[payload["record"]] = payload
        newest = sorted(found.values(), key=lambda each: -each["time"])[:limit]
        found = {each["record"]: each for each in newest}
        before = max((each.last for each in rows[:at]), default=0.0)
        if len(newest) == limit and before < newest[-1]["time"]:
            break
    return sorted(found.values(), key=lambda each: -each["time"])


def sweep(parts: Parts, now: float, most: int) -> int:
    """Remove what is too old, what a tenant has beyond `most` bytes, and what was deleted.

    Returns how many files went.
    """
    with parts.db.read() as tx:
        old = store.expired(tx, now)
        for tenant, size in store.sizes(tx).items():
            if size > most:
                old += [(tenant, each) for each in _beyond(store.by_age(tx, tenant), most)]
        gone = store.gone(tx)
    if old:
        with parts.db.write() as tx:
            for tenant, identifier in old:
                store.drop(tx, tenant, [identifier])
    for tenant, identifier in (*old, *gone):
        with parts.storage:
            parts.blobs.delete(_key(tenant, identifier))
            with parts.db.write() as tx:
                store.remove(tx, tenant, identifier)
    return len(old) + len(gone)


def folders(tx: Connection, parts: Parts, tenant: str) -> list[Path]:
    """Where what has not come yet of a tenant lies, on this machine."""
    return [parts.settings.home / "run" / KIND / tenant]


def _beyond(rows: list[Any], most: int) -> list[str]:
    """Of files, newest first, those that do not fit."""
    found, size = [], 0
    for row in rows:
        size += row.bytes
        if size > most:
            found.append(row.id)
    return found


def _days(lines: list[bytes], since: float) -> Iterator[_Part]:
    days: dict[str, list[tuple[float, bytes]]] = {}
    for line in lines:
        moment = _LINES.decode(line).time
        if moment < since:
            continue
        day = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
        days.setdefault(day, []).append((moment, line))
    for day, found in days.items():
        moments = [moment for moment, _ in found]
        yield _Part(day, [line for _, line in found], min(moments), max(moments))


def _append(parts: Parts, tenant: str, name: str, part: _Part) -> None:
    """Put payloads into a file of their own, with what is in the newest one if that is small."""
    with parts.storage:
        with parts.db.read() as tx:
            before = store.newest(tx, tenant, name, part.day)
        if before is not None and before.bytes >= FULL:
            before = None
        content = _packed(part.lines)
        if before is not None:
            content = _stored(parts, tenant, before.id) + content
        row = {
            "id": new_id("pay"),
            "endpoint": name,
            "day": part.day,
            "first": min(part.first, before.first) if before else part.first,
            "last": max(part.last, before.last) if before else part.last,
            "records": len(part.lines) + (before.records if before else 0),
            "bytes": len(content),
        }
        _put(parts, tenant, str(row["id"]), content)
        with parts.db.write() as tx:
            wanted = store.get(tx, tenant, name) is not None
            replaced = before is None or store.drop(tx, tenant, [before.id]) == 1
            if wanted and replaced:
                store.add(tx, tenant, row)
    if not (wanted and replaced):
        parts.blobs.delete(_key(tenant, str(row["id"])))
        if wanted:  # another control process was first, or somebody deleted the file
            _append(parts, tenant, name, part)


def _put(parts: Parts, tenant: str, identifier: str, content: bytes) -> None:
    folder = Path(tempfile.mkdtemp(prefix="payloads-"))
    (folder / NAME).write_bytes(content)
    parts.blobs.put(_key(tenant, identifier), folder)


def _content(parts: Parts, tenant: str, identifier: str) -> list[bytes]:
    """The lines of a file."""
    data, found = _stored(parts, tenant, identifier), []
    while data:
        member = zlib.decompressobj(_GZIP)
        found.append(member.decompress(data))
        data = member.unused_data
    return b"".join(found).splitlines()


def _stored(parts: Parts, tenant: str, identifier: str) -> bytes:
    return (parts.blobs.get(_key(tenant, identifier)) / NAME).read_bytes()


def _packed(lines: list[bytes]) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    return packer.compress(b"\n".join(lines) + b"\n") + packer.flush()


def _key(tenant: str, identifier: str) -> str:
    return f"{tenant}/{KIND}/{identifier}"
