"""Header compression of HTTP/2 (RFC 7541): a decoder, and an encoder that keeps no state.

What the encoder writes may be sent on any connection at any time, because it never refers to the
peer's table. Bounds: a table has 4096 bytes, a list as many bytes as the decoder was told.
"""

import re
from functools import cache
from typing import Final

from tapster.serving.rpc.frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    PeerError,
    StreamError,
)

TABLE_BYTES: Final = 4096
# A list so many times the limit is not decoded to its end, as the table would need; RFC 7541, 4.2
# has no more than two changes of the table's size in a block.
EXCESS: Final = 2
MAX_RESIZES: Final = 2
Field = tuple[bytes, bytes]

# RFC 7541, appendix A: an entry a line, the value after a space.
_TABLE: Final = b""":authority
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset
accept-encoding gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate"""
_STATIC: Final[tuple[Field, ...]] = (
    (b"", b""),
    *((name, value) for name, _, value in (row.partition(b" ") for row in _TABLE.splitlines())),
)
_NAMES: Final = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC)))}
_DYNAMIC: Final = len(_STATIC)
# RFC 7541, appendix B: the length in bits of each byte's code, and the end mark's, as digits to
# the base 36. The codes are canonical, so their lengths say them all.
_LENGTHS: Final = (
    "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6ca"
    "d67777777777777777777777878djde6f56565666577666567655677777fbeds"
    "kmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmolmnnllmlnmnnkmmmnmmn"
    "qqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrq"
    "u"
)
_MARK: Final = 256
_OVERHEAD: Final = 32
_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_FORBIDDEN: Final = re.compile(rb"[\0\r\n]")


class Decoder:
    """One connection's table. `revision` grows whenever the table changes."""

    def __init__(self, limit: int) -> None:
        self.revision = 0
        self._limit = limit
        self._table: list[Field] = []  # the newest entry last
        self._size = 0
        self._most = TABLE_BYTES
        self._malformed = False

    def decode(self, block: bytes) -> tuple[list[Field], bool]:
        """A block's fields, and whether they are all: those beyond the limit are left out.

        Raises PeerError, after which the table is of no use, and StreamError for a field that may
        not be, once the whole block is decoded.
        """
        self._malformed = False
        try:
            found = self._decode(block)
        except IndexError:
            raise PeerError(COMPRESSION_ERROR, "a header block ends too early") from None
        if self._malformed:
            raise StreamError(PROTOCOL_ERROR)
        return found

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:
        fields: list[Field] = []
        at, end, size, resizes = 0, len(block), 0, 0
        while at < end:
            byte = block[at]
            if byte & 0x80:
                index, at = _integer(block, at, 0x7F)
                field = self._entry(index)
            elif byte & 0xE0 == 0x20:
                most, at = _integer(block, at, 0x1F)
                resizes += 1
                self._resize(most, first=not size and resizes <= MAX_RESIZES)
                continue
            else:
                kept = byte & 0x40
                index, at = _integer(block, at, 0x3F if kept else 0x0F)
                field, at = self._literal(block, at, index)
                if (index == 0 and not _NAME.fullmatch(field[0])) or _FORBIDDEN.search(field[1]):
                    self._malformed = True
                    if kept:  # it would come again and again
                        raise PeerError(PROTOCOL_ERROR, "a header has a forbidden character")
                if kept:
                    self._keep(field)
            size += len(field[0]) + len(field[1]) + _OVERHEAD
            if size <= self._limit:
                fields.append(field)
            elif size > EXCESS * self._limit:
                raise PeerError(ENHANCE_YOUR_CALM, "the headers are far too large")
        return fields, size <= self._limit

    def _entry(self, index: int) -> Field:
        if 0 < index < _DYNAMIC:
            return _STATIC[index]
        if not index or index - _DYNAMIC >= len(self._table):
            raise PeerError(COMPRESSION_ERROR, "a header refers to nothing in the table")
        return self._table[_DYNAMIC - 1 - index]

    def _literal(self, block: bytes, at: int, index: int) -> tuple[Field, int]:
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _keep(self, field: Field) -> None:
        self.revision += 1
        self._table.append(field)
        self._size += len(field[0]) + len(field[1]) + _OVERHEAD
        self._evict()

    def _resize(self, most: int, first: bool) -> None:
        if not first or most > TABLE_BYTES:
            raise PeerError(COMPRESSION_ERROR, "the table cannot be given that size")
        self.revision += 1
        self._most = most
        self._evict()

    def _evict(self) -> None:
        gone = 0
        while self._size > self._most:
            name, value = self._table[gone]
            self._size -= len(name) + len(value) + _OVERHEAD
            gone += 1
        del self._table[:gone]


def encode(name: bytes, value: bytes) -> bytes:
    """A field that no table will keep."""
    index = _NAMES.get(name, 0)
    spelled = b"" if index else _spell(len(name), 0x7F, 0) + name
    return _spell(index, 0x0F, 0) + spelled + _spell(len(value), 0x7F, 0) + value


def encode_static(name: bytes, value: bytes) -> bytes:
    """A field that is whole in the static table. Raises ValueError for any other."""
    return bytes([0x80 | _STATIC.index((name, value))])


def _spell(number: int, mask: int, flags: int) -> bytes:
    if number < mask:
        return bytes([flags | number])
    spelled = bytearray([flags | mask])
    number -= mask
    while number > 0x7F:
        spelled.append(number & 0x7F | 0x80)
        number >>= 7
    spelled.append(number)
    return bytes(spelled)


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """A number and where it ends; `mask` covers its bits in the first byte."""
    number = block[at] & mask
    at += 1
    if number < mask:
        return number, at
    for shift in range(0, 28, 7):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise PeerError(COMPRESSION_ERROR, "a number in a header block is too large")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    short = block[at] & 0x80
    length, at = _integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise PeerError(COMPRESSION_ERROR, "a header block ends too early")
    text = block[at:end]
    return (_expand(text) if short else text), end


def _expand(text: bytes) -> bytes:
    """Undo the Huffman code, half a byte at a time."""
    steps, ends = _code()
    node = 0
    found = bytearray()
    for byte in text:
        node, symbol = steps[node << 4 | byte >> 4]
        if symbol >= 0:
            found.append(symbol)
        node, symbol = steps[node << 4 | byte & 0x0F]
        if symbol >= 0:
            found.append(symbol)
    if node not in ends:
        raise PeerError(COMPRESSION_ERROR, "a header is not padded as it must be")
    return bytes(found)


@cache
def _code() -> tuple[list[tuple[int, int]], frozenset[int]]:
    """Where half a byte leads from each inner node of the code's tree, and the symbol it
    completes, or -1 (no code is shorter than five bits, so there is at most one); and the nodes
    where a text may end: those that up to seven ones lead to. The last node is for errors.
    """
    tree = _tree()
    lost = len(tree)
    steps = []
    for start in range(lost):
        for half in range(16):
            node, symbol = start, -1
            for bit in (3, 2, 1, 0):
                if node == lost:
                    break
                node = tree[node][half >> bit & 1]
                if node < 0:
                    symbol, node = ~node, 0
                    if symbol == _MARK:
                        symbol, node = -1, lost
            steps.append((node, symbol))
    steps += [(lost, -1)] * 16
    ends, node = [], 0
    for _ in range(8):
        ends.append(node)
        node = tree[node][1]
    return steps, frozenset(ends)


def _tree() -> list[list[int]]:
    """Pairs of children by node: the number of an inner node, or ~symbol."""
    tree = [[0, 0]]
    code = length = 0
    for symbol in sorted(range(_MARK + 1), key=lambda each: (_LENGTHS[each], each)):
        longer = int(_LENGTHS[symbol], 36)
        code, length = code << (longer - length), longer
        node = 0
        for bit in range(length - 1, 0, -1):
            side = code >> bit & 1
            if not tree[node][side]:
                tree[node][side] = len(tree)
                tree.append([0, 0])
            node = tree[node][side]
        tree[node][code & 1] = ~symbol
        code += 1
    return tree
