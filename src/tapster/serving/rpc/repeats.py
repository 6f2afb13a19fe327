"""Calls that were made before on a connection: the same frames, but for the tensor in them.

A caller's requests differ in their stream's number and in the raw bytes of the only input; what
comes before says the same every time, for as long as the connection's table of headers and the
plan in force stay the same. Such a request is two frames, HEADERS and DATA, that lie together:

    length, type, flags | number | block | length, type, flags | number | prefix, message | tensor
"""

from typing import Final

from tapster.serving.bills import Bill
from tapster.serving.endpoints import Target
from tapster.serving.gate import Pass
from tapster.serving.rpc.encoding import header
from tapster.serving.rpc.frames import DATA, END_STREAM, HEAD_BYTES
from tapster.serving.rpc.heads import Head
from tapster.serving.rpc.methods import Method

MAX_KEPT: Final = 16
MAX_BYTES: Final = 2048
# What is learned in vain so often is not learned any more.
LUCK: Final = 8
_RAW: Final = 7
_NUMBER: Final = 4
_BEFORE_NUMBER: Final = HEAD_BYTES - _NUMBER
_PREFIX: Final = 5


class Repeat:
    """What a request was found to ask."""

    __slots__ = ("account", "head", "holder", "method", "rows", "target")

    def __init__(  # noqa: PLR0917
        self, head: Head, holder: Pass, method: Method, target: Target, account: Bill, rows: int
    ) -> None:
        self.head = head
        self.holder = holder
        self.method = method
        self.target = target
        self.account = account
        self.rows = rows


class Repeats:
    """Requests of one length and layout, of one state of the table and the plan.

    `size` is their length in bytes, 0 while none is known; `tensor` that of the tensor, `data`
    that of all data.
    """

    def __init__(self) -> None:
        self.size = 0
        self.tensor = 0
        self.data = 0
        self._second = 0  # where the second frame has its number
        self._kept: dict[bytes, Repeat] = {}
        self._stamp = (-1, -1)
        self._luck = LUCK

    @property
    def hopeful(self) -> bool:
        """Whether it is worth while to learn."""
        return self._luck > 0

    def find(self, data: bytes, at: int, stamp: tuple[int, int]) -> Repeat | None:
        """What the request at `at` asks, if it is whole and was asked before."""
        end = at + self.size
        second = at + self._second
        if len(data) < end or stamp != self._stamp:
            return None
        first = at + _BEFORE_NUMBER
        if data[first : first + _NUMBER] != data[second : second + _NUMBER]:
            return None
        found = self._kept.get(
            data[at:first]
            + data[first + _NUMBER : second]
            + data[second + _NUMBER : end - self.tensor]
        )
        if found is not None:
            self._luck = LUCK
        return found

    def forget(self, stamp: tuple[int, int]) -> None:
        """Keep nothing of what is gone from the plan."""
        if stamp != self._stamp:
            self._kept.clear()

    def learn(self, pair: bytes, tensor: int, stamp: tuple[int, int], repeat: Repeat) -> None:
        """Keep a request: two frames, the second ending with so many bytes of the tensor.

        What is not laid out so is left alone.
        """
        second = HEAD_BYTES + int.from_bytes(pair[:3], "big")
        body = second + HEAD_BYTES
        size = len(pair)
        message = size - body - _PREFIX
        announced = header(_RAW, tensor)
        if (
            size > MAX_BYTES + tensor
            or pair[_BEFORE_NUMBER:HEAD_BYTES] != pair[second + _BEFORE_NUMBER : body]
            or int.from_bytes(pair[second : second + 3], "big") != size - body
            or pair[second + 3 : second + 5] != bytes((DATA, END_STREAM))
            or pair[body : body + _PREFIX] != message.to_bytes(_PREFIX, "big")
            or pair[size - tensor - len(announced) : size - tensor] != announced
        ):
            return
        layout = (size, tensor, second + _BEFORE_NUMBER)
        if stamp != self._stamp or layout != (self.size, self.tensor, self._second):
            self._kept.clear()
            self._luck -= 1
            self._stamp = stamp
            self.size, self.tensor, self._second = layout
            self.data = size - body
        elif len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        key = pair[:_BEFORE_NUMBER] + pair[HEAD_BYTES : self._second]
        self._kept[key + pair[body : size - tensor]] = repeat
