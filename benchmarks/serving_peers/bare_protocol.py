# /// script
# dependencies = ["httptools", "uvloop"]
# ///
"""No server at all: what the protocols alone cost. `{}` to every POST, an empty gRPC message.

HTTP is parsed by httptools, HTTP/2 only framed; both on uvloop. Nothing in Python can be faster,
and the load generator must be.

`python bare_protocol.py MODEL_FOLDER HTTP_PORT GRPC_PORT`
"""

import asyncio
import struct
import sys
from typing import Any

import httptools
import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
WIDE = (1 << 31) - 1


class Http(asyncio.Protocol):
    """HTTP/1.1."""

    def connection_made(self, transport: Any) -> None:
        """A caller."""
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """All of it."""
        self.transport.write(ANSWER)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


class Grpc(asyncio.Protocol):
    """HTTP/2: frames are taken apart, headers are not."""

    def connection_made(self, transport: Any) -> None:
        """A caller: give it all the window there is."""
        self.transport = transport
        self.buffer = b""
        self.greeted = False
        settings = frame(4, 0, 0, struct.pack(">HI", 4, WIDE))
        transport.write(settings + frame(8, 0, 0, (WIDE - 65_535).to_bytes(4)))

    def data_received(self, data: bytes) -> None:
        """Frames: settings are acknowledged, a whole request is answered."""
        data = self.buffer + data
        at = 0
        if not self.greeted and len(data) >= 24:
            self.greeted, at = True, 24  # past the preface
        while self.greeted and len(data) - at >= 9:
            stop = at + 9 + int.from_bytes(data[at : at + 3])
            if stop > len(data):
                break
            kind, flags, stream = data[at + 3], data[at + 4], data[at + 5 : at + 9]
            if kind == 4 and not flags & 1:
                self.transport.write(frame(4, 1, 0))
            elif kind == 0 and flags & 1:
                self.transport.write(answer(int.from_bytes(stream)))
            at = stop
        self.buffer = data[at:]


def answer(stream: int) -> bytes:
    """Status 200, an empty message, grpc-status 0."""
    head = frame(1, 4, stream, b"\x88\x0f\x10\x10application/grpc")
    message = frame(0, 0, stream, b"\0\0\0\0\0")
    return head + message + frame(1, 5, stream, b"\0\x0bgrpc-status\x010")


async def main(port: int, grpc_port: int) -> None:
    """Answer until told to stop."""
    loop = asyncio.get_running_loop()
    await loop.create_server(Http, "127.0.0.1", port)
    await loop.create_server(Grpc, "127.0.0.1", grpc_port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[2]), int(sys.argv[3])))
