"""A whole plan as bytes: what is few is JSON; keys and tenants are tables, searched where they lie.

A machine may know a hundred thousand keys of which a worker meets few, so none is decoded before
it is met, and reading a snapshot takes the time of copying it. All numbers are little-endian:

    snapshot: magic | length of the JSON (4) | JSON | table of keys | table of tenants
    table:    count (4) | length of the records (4) | marks (8 each, ascending) | ends (4 each)
              | records
    record:   SHA-256 of what it is found by (32) | MessagePack; its mark is the hash's beginning
"""

import hashlib
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

import msgspec

from tapster.contract.plan import KeyGrant, ServingPlan, TenantGrant

MAGIC: Final = b"tapster plan 1\n"
_HASH: Final = 32
_LENGTH: Final = struct.Struct("<I")
_COUNTS: Final = struct.Struct("<II")
_PLANS: Final = msgspec.json.Decoder(ServingPlan)
_GRANTS: Final = msgspec.msgpack.Decoder(KeyGrant)
_TENANTS: Final = msgspec.msgpack.Decoder(TenantGrant)


class Table:
    """Records by a hash. Raises ValueError for bytes that are no table."""

    def __init__(self, data: bytes, at: int) -> None:
        try:
            count, size = _COUNTS.unpack_from(data, at)
            at += _COUNTS.size
            self._marks = _numbers("Q", data[at : at + 8 * count])
            at += 8 * count
            self._ends = _numbers("I", data[at : at + 4 * count])
            self._start = at + 4 * count
        except struct.error:
            raise ValueError("a table is cut off") from None
        self.end = self._start + size
        if self.end > len(data) or len(self._ends) < count or (count and self._ends[-1] != size):
            raise ValueError("a table is cut off")
        self._data = data

    def __len__(self) -> int:
        return len(self._marks)

    def find(self, hashed: bytes) -> bytes | None:
        """The record of a hash."""
        mark = int.from_bytes(hashed[:8], "big")
        at = bisect_left(self._marks, mark)
        while at < len(self._marks) and self._marks[at] == mark:
            first = self._start + (self._ends[at - 1] if at else 0)
            if self._data[first : first + _HASH] == hashed:
                return self._data[first + _HASH : self._start + self._ends[at]]
            at += 1
        return None


class Snapshot:
    """A whole plan; `plan` has everything but keys and tenants, which are looked up."""

    def __init__(self, plan: ServingPlan, keys: Table, tenants: Table) -> None:
        self.plan = plan
        self.keys = keys
        self.tenants = tenants

    def key(self, digest: bytes) -> KeyGrant | None:
        """The key with this SHA-256."""
        record = self.keys.find(digest)
        if record is None:
            return None
        return msgspec.structs.replace(_GRANTS.decode(record), digest=digest.hex())

    def tenant(self, name: str) -> TenantGrant | None:
        """A tenant that is not as all others are."""
        record = self.tenants.find(_hashed(name))
        return None if record is None else _TENANTS.decode(record)


def pack(
    plan: ServingPlan,
    keys: Iterable[KeyGrant] | None = None,
    tenants: Iterable[TenantGrant] | None = None,
) -> bytes:
    """A plan as bytes; `keys` and `tenants` in place of its own."""
    encode = msgspec.msgpack.encode
    bare = msgspec.structs.replace
    grants = plan.keys if keys is None else keys
    known = (bytes.fromhex(each.digest) + encode(bare(each, digest="")) for each in grants)
    others = plan.tenants if tenants is None else tenants
    special = (_hashed(each.tenant) + encode(each) for each in others)
    head = msgspec.json.encode(bare(plan, keys=(), tenants=()))
    return b"".join((MAGIC, _LENGTH.pack(len(head)), head, *_table(known), *_table(special)))


def unpack(data: bytes) -> Snapshot:
    """The plan that `pack` has packed. Raises ValueError for anything else."""
    start = len(MAGIC) + _LENGTH.size
    if not data.startswith(MAGIC) or len(data) < start:
        raise ValueError("this is no plan, or one of another release")
    end = start + _LENGTH.unpack_from(data, len(MAGIC))[0]
    try:
        plan = _PLANS.decode(data[start:end])
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    keys = Table(data, end)
    return Snapshot(plan, keys, Table(data, keys.end))


def _hashed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _table(records: Iterable[bytes]) -> tuple[bytes, ...]:
    """The pieces of a table of records."""
    ordered = sorted(records)
    marks, ends = array("Q"), array("I")
    size = 0
    for record in ordered:
        marks.append(int.from_bytes(record[:8], "big"))
        size += len(record)
        ends.append(size)
    if sys.byteorder == "big":
        marks.byteswap()
        ends.byteswap()
    return _COUNTS.pack(len(ordered), size), marks.tobytes(), ends.tobytes(), *ordered


def _numbers(kind: str, data: bytes) -> "array[int]":
    numbers = array(kind)
    try:
        numbers.frombytes(data)
    except ValueError:
        raise ValueError("a table is cut off") from None
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
