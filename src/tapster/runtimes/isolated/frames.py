"""What two processes say to each other over a socket: framed msgpack, never a pickle.

A frame is its length (4 bytes, little-endian) and a message; a descriptor may travel with it. Each
side waits for the other's answer before it speaks again.
"""

import array
import select
import socket
import struct
import sys
import time
from typing import Any, Final

import msgspec

from tapster.runtimes import Description, Stop
from tapster.runtimes.isolated.tensors import Packed

LONGEST: Final = 64 << 20
_HEAD: Final = struct.Struct("<I")
_PIECE: Final = 256 << 10
_LOOK: Final = 0.05  # seconds between two looks whether a run is stopped
_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # Linux only


class Boot(msgspec.Struct, array_like=True, tag=True):
    """To a new process: load the package with this digest, or (no digest) a draft of one.

    A draft is a folder of files that is no package yet: `runtime` says what its signature is.
    """

    folder: str
    digest: str
    runtime: str
    model_file: str
    threads: int
    memory: int


class Run(msgspec.Struct, array_like=True, tag=True):
    """Run the model. `grown`: a new segment for inputs comes with this.

    Every answer to it names its `turn`, so that none is taken for another's.
    """

    turn: int
    inputs: list[Packed]
    outputs: list[str]
    deadline: float | None
    grown: bool


class Room(msgspec.Struct, array_like=True, tag=True):
    """Answer to Need: a new segment for outputs comes with this; or none, which is refused."""

    given: bool


class Hello(msgspec.Struct, array_like=True, tag=True):
    """The model is loaded; for a draft, what it takes and gives."""

    description: Description | None


class Need(msgspec.Struct, array_like=True, tag=True):
    """The outputs need a segment of that many bytes."""

    turn: int
    size: int


class Outputs(msgspec.Struct, array_like=True, tag=True):
    """What the model answered."""

    turn: int
    outputs: list[Packed]


class Refusal(msgspec.Struct, array_like=True, tag=True):
    """A TapsterError's parts. `memory`: it is for want of memory. `turn` is 0 while loading."""

    turn: int
    error: dict[str, str]
    memory: bool = False


Order = Boot | Run | Room
Word = Hello | Need | Outputs | Refusal

ORDERS: Final = msgspec.msgpack.Decoder(Order)
WORDS: Final = msgspec.msgpack.Decoder(Word)


class Silence(Exception):  # noqa: N818 - nothing is wrong: nothing was said in time
    """The other side has not answered in time."""


class Lost(Exception):  # noqa: N818 - named for what has become of the other side
    """The other side is gone. `unread`: before it had read all that was said to it."""

    def __init__(self, *, unread: bool = False) -> None:
        super().__init__()
        self.unread = unread


class Garbled(Exception):  # noqa: N818 - named for what was heard
    """What the other side said is no message."""


class Line:
    """One end of the socket between a worker and a model's process. For one thread at a time.

    The worker hears WORDS and takes no descriptors; `watched` is one of its own that becomes
    readable when the other side ends; a `stop` that is called ends a wait. The other side hears
    ORDERS.
    """

    def __init__(self, end: socket.socket, decoder: Any, watched: int = -1) -> None:
        self.stop: Stop | None = None
        self._end = end
        self._decoder = decoder
        self._ancillary = socket.CMSG_SPACE(4) if decoder is ORDERS else 0
        end.setblocking(False)
        self._reading, self._writing = select.poll(), select.poll()
        self._reading.register(end, select.POLLIN)
        self._writing.register(end, select.POLLOUT)
        if watched >= 0:
            self._reading.register(watched, select.POLLIN)
            self._writing.register(watched, select.POLLIN)

    def fileno(self) -> int:
        """The socket, to wait for something said."""
        return self._end.fileno()

    def spoken(self) -> bool:
        """Whether there is something to hear."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Hang up."""
        self._end.close()

    def say(self, message: Order | Word, until: float | None, descriptor: int = -1) -> None:
        """Send a message, and a copy of a descriptor. Raises Silence after `until`, and Lost."""
        data = msgspec.msgpack.encode(message)
        left = memoryview(_HEAD.pack(len(data)) + data)
        ancillary: list[Any] = []
        if descriptor >= 0:
            fds = array.array("i", [descriptor])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        while left:
            try:
                left = left[self._end.sendmsg([left[:_PIECE]], ancillary) :]
                ancillary = []
            except BlockingIOError:
                self._wait(self._writing, until)
            except OSError:
                raise Lost(unread=True) from None

    def hear(self, until: float | None) -> tuple[Any, int]:
        """The next message, and the descriptor that came with it (else -1).

        Raises Silence when it has not come by `until`, Lost and Garbled.
        """
        got, descriptor, length = bytearray(), -1, 0
        while len(got) < (length or _HEAD.size):
            piece, found = self._piece(until)
            descriptor = max(descriptor, found)
            got += piece
            if not length and len(got) >= _HEAD.size:
                length = _HEAD.size + _HEAD.unpack_from(got)[0]
                if not _HEAD.size < length <= LONGEST:
                    raise Garbled
        if len(got) > length:
            raise Garbled
        try:
            return self._decoder.decode(memoryview(got)[_HEAD.size :]), descriptor
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Garbled from None

    def _piece(self, until: float | None) -> tuple[bytes, int]:
        while True:
            self._wait(self._reading, until)
            try:
                data, sent, _, _ = self._end.recvmsg(_PIECE, self._ancillary, _CLOEXEC)
            except BlockingIOError:
                continue
            except OSError as error:  # unix(7): a reset, if what we sent was not read
                raise Lost(unread=isinstance(error, ConnectionResetError)) from None
            if not data:
                raise Lost
            return data, int.from_bytes(sent[0][2][:4], sys.byteorder) if sent else -1

    def _wait(self, poll: select.poll, until: float | None) -> None:
        """Until the socket is ready. Raises Silence after `until` or when stopped, and Lost."""
        while True:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise Silence
            if self.stop is not None:
                left = _LOOK if left is None else min(left, _LOOK)
            ready = poll.poll(None if left is None else left * 1000)
            if ready and all(descriptor != self._end.fileno() for descriptor, _ in ready):
                raise Lost
            if ready:
                return
            if self.stop is not None and self.stop.called:
                raise Silence
