"""Good conversations with something wrong in them: nothing falls over, nothing is kept."""

import os
import random
import socket
from collections.abc import Iterator

import psutil
import pytest

from tapster.serving.rpc import frames
from tapster.serving.rpc.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PING, frame
from tests.serving.conftest import Plane, wait_for
from tests.serving.rpc.calling import (
    OPENING,
    STREAM,
    Peer,
    block,
    prefixed,
    request_frames,
    sum_request,
)

SCALE = float(os.environ.get("TAPSTER_SOAK", "1"))
TALK = [
    frames.PREFACE,
    frames.settings({frames.INITIAL_WINDOW_SIZE: 100, frames.MAX_FRAME_SIZE: 20_000}),
    *(request_frames(number, sum_request()) for number in (1, 3, 5)),
    frame(HEADERS, END_HEADERS, 7, block(STREAM, grpc_timeout=b"9S")),
    *(frame(DATA, 0, 7, prefixed(sum_request(id=str(number)))) for number in range(3)),
    frames.window_update(7, 500),
    frame(HEADERS, 0, 9, block()[:20]),
    frame(frames.CONTINUATION, END_HEADERS, 9, block()[20:]),
    frame(DATA, END_STREAM, 9, prefixed(sum_request())),
    frames.reset(7, frames.CANCEL),
    frame(PING, 0, 0, b"12345678"),
    frames.window_update(0, 1 << 20),
    frame(HEADERS, END_HEADERS | END_STREAM, 11, block("grpc.health.v1.Health/Check", None)),
    request_frames(13, sum_request(), grpc_encoding=b"gzip"),
    request_frames(15, b"", path="inference.GRPCInferenceService/ServerLive"),
]


def spoiled(seed: int) -> bytes:
    """The conversation, with some pieces changed, lost, repeated or moved."""
    chance = random.Random(seed)
    pieces = list(TALK)
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(1, len(pieces))
        other = chance.randrange(1, len(pieces))
        what = chance.randrange(3)
        if what == 0:
            del pieces[at : at + chance.randint(1, 3)]
            pieces.append(OPENING[24:])
        elif what == 1:
            pieces.insert(at, pieces[min(other, len(pieces) - 1)])
        else:
            pieces[at - 1 : at + 1] = pieces[at : at - 2 : -1] or pieces[:1]
    data = bytearray(b"".join(pieces))
    for _ in range(chance.choice([0, 1, 1, 2, 5, 50])):
        at = chance.randrange(len(frames.PREFACE), len(data))
        what = chance.randrange(4)
        if what == 0:
            data[at] = chance.randrange(256)
        elif what == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif what == 2:
            del data[at : at + chance.randint(1, 20)]
        else:
            data[at:at] = chance.randbytes(chance.randint(1, 20))
    return bytes(data[: chance.randint(1, len(data))] if chance.random() < 0.2 else data)


def pieces_of(data: bytes, seed: int) -> Iterator[bytes]:
    """The data in one piece or many."""
    chance = random.Random(seed)
    size = chance.choice([len(data), 1000, 100, 13])
    for at in range(0, len(data), size):
        yield data[at : at + size]


def throw(plane: Plane, seeds: range) -> None:
    """Hold one spoiled conversation after another."""
    process = psutil.Process(plane.workers[0].pid)
    before, files = process.memory_info().rss, process.num_fds()
    for seed in seeds:
        with Peer(plane, greet=False) as peer:
            peer.line.settimeout(0.02)
            for piece in pieces_of(spoiled(seed), seed):
                peer.send(piece)
            try:
                while peer.line.recv(65536):
                    pass
            except (TimeoutError, ConnectionResetError):
                pass
            if seed % 2:
                peer.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with Peer(plane) as peer:
        peer.works()
    assert plane.workers[0].poll() is None
    log = (plane.home / "log").read_text()
    for word in ("Traceback", "traceback", "data_received", "Fatal", "nobody foresaw"):
        assert word not in log, log[-3000:]
    wait_for(lambda: process.num_fds() <= files, "connections to be closed")
    assert process.memory_info().rss - before < 64 << 20


def test_spoiled_conversations_hurt_nobody(plane: Plane) -> None:
    throw(plane, range(300))


@pytest.mark.soak
def test_many_spoiled_conversations_hurt_nobody(plane: Plane) -> None:
    throw(plane, range(1000, 1000 + int(50_000 * SCALE)))
