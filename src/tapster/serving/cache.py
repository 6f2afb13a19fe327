"""Answers given again to equal requests of the same tenant, for as long as an endpoint allows.

Kept are the output arrays, so that any wire can be answered from what another has asked. Errors
are not kept, nor answers with a note. Equal requests that come before the first is answered run
as well.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tapster.contract.inference import Array
from tapster.serving.noting import Noted
from tapster.serving.slots import CACHE_HITS, CACHE_MISSES, UNAVAILABLE, Region
from tapster.serving.work import LARGE_ANSWER, Answer, Inputs, Work

# What an entry takes beside its arrays, and at most, as a share of the whole.
ENTRY_BYTES: Final = 500
LARGEST_SHARE: Final = 0.125

Submit = Callable[[Work], None]
Packed = tuple[str, int] | None


class Cache:
    """The answers that one worker keeps: the least recently used go first, within `limit` bytes."""

    def __init__(self, limit: int, region: Region) -> None:
        self.size = 0
        self._limit = limit
        self._region = region
        self._kept: OrderedDict[bytes, tuple[float, list[Array], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def before(self, submit: Submit, identity: str, packed: Packed, seconds: float) -> Submit:
        """What answers from the cache, or else by `submit`.

        `identity` names what would answer, by digests; `packed` is that of its `packed_input`.
        """
        head = msgspec.msgpack.encode(identity)

        def answer(work: Work) -> None:
            key = _digest(head, work.tenant, work.inputs, packed)
            found = self._find(key, seconds)
            if found is None:
                self._region.count(work.place, CACHE_MISSES)
                submit(_Miss(self, work, key))
            else:
                self._hit(work, found)

        return answer

    def keep(self, key: bytes, arrays: Sequence[Array]) -> None:
        """Keep an answer, unless it is too large."""
        owned = [array if array.base is None else array.copy() for array in arrays]
        size = ENTRY_BYTES + sum(map(_size, owned))
        if size > LARGEST_SHARE * self._limit:
            return
        self._drop(key)
        self._kept[key] = (time.monotonic(), owned, size)
        self.size += size
        while self.size > self._limit:
            self._drop(next(iter(self._kept)))

    def _find(self, key: bytes, seconds: float) -> list[Array] | None:
        """An answer that is not older: another endpoint may have let it grow older."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        if entry[0] + seconds <= time.monotonic():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return entry[1]

    def _drop(self, key: bytes) -> None:
        entry = self._kept.pop(key, None)
        if entry is not None:
            self.size -= entry[2]

    def _hit(self, work: Work, arrays: list[Array]) -> None:
        body = work.render(Answer(arrays, work.rows, 1), 0)
        now = time.monotonic_ns()
        region = self._region
        error = work.withhold(len(body)) if len(body) > LARGE_ANSWER else None
        if error is not None:
            region.count(work.place, UNAVAILABLE)
            work.fail(error)
            return
        region.answered(work, 200, now, cached=1)
        if region.watch is not None and now - work.began >= region.least:
            region.watch.served([work], now, now, 0)
        region.count(work.place, CACHE_HITS)
        work.succeed(body)


class _Miss(Noted):
    """A request whose answer will be kept."""

    __slots__ = ("_arrays", "_cache", "_key")

    def __init__(self, cache: Cache, work: Work, key: bytes) -> None:
        super().__init__(work)
        self._cache = cache
        self._key = key
        self._arrays: list[Array] | None = None

    def render(self, answer: Answer, first: int) -> bytes:
        """See Work."""
        if not answer.note:
            rows = slice(None) if answer.alone else slice(first, first + self._work.rows)
            self._arrays = [array[rows] for array in answer.arrays]
        return self._work.render(answer, first)

    def succeed(self, body: bytes) -> None:
        """See Work. The caller first."""
        self._work.succeed(body)
        if self._arrays is not None:
            self._cache.keep(self._key, self._arrays)


def _digest(head: bytes, tenant: str, inputs: Inputs, packed: Packed) -> bytes:
    """The same for the same inputs, however a wire has packed them; else another."""
    found = hashlib.blake2b(head, digest_size=32)
    encode = msgspec.msgpack.encode
    if isinstance(inputs, bytes):
        assert packed is not None
        name, width = packed
        found.update(encode((tenant, name, "<f4", (len(inputs) // (4 * width), width))))
        found.update(inputs)
        return found.digest()
    for name, array in sorted(inputs.items()):
        found.update(encode((tenant, name, array.dtype.str, array.shape)))
        texts = array.dtype.kind == "O"
        found.update(encode(array.ravel().tolist()) if texts else array.tobytes())
    return found.digest()


def _size(array: Array) -> int:
    if array.dtype.kind != "O":
        return array.nbytes
    return array.nbytes + sum(64 + len(text) for text in array.ravel().tolist())
