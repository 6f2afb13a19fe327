"""Calling the gRPC port: as grpcio does with our own messages, and frame by frame."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from tapster.contract.inference import NUMPY_TYPE
from tapster.serving.rest import raw
from tapster.serving.rpc import frames
from tapster.serving.rpc.hpack import Decoder, encode
from tapster.serving.rpc.messages import message
from tests.serving.conftest import KEY, LIMIT, Plane

OPEN = "inference.GRPCInferenceService"
INFER = f"{OPEN}/ModelInfer"
STREAM = f"{OPEN}/ModelStreamInfer"
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


@contextmanager
def channel(plane: Plane, **options: Any) -> Iterator[grpc.Channel]:
    """A connection of its own."""
    more = [(f"grpc.{name}", value) for name, value in options.items()]
    with grpc.insecure_channel(f"127.0.0.1:{plane.grpc_port}", [*_OPTIONS, *more]) as made:
        yield made


def metadata(key: str | None, **more: str) -> list[tuple[str, str]]:
    """Metadata with a key."""
    found = [(name.replace("_", "-"), value) for name, value in more.items()]
    return found if key is None else [("authorization", f"Bearer {key}"), *found]


@dataclass
class Reply:
    """How a call ended: status, message, trailing metadata, and the answer if it went well."""

    code: grpc.StatusCode
    details: str
    trailers: dict[str, str]
    answer: Any


def call(  # noqa: PLR0917
    plane: Plane,
    method: str,
    request: Any = b"",
    key: str | None = KEY,
    made: grpc.Channel | None = None,
    timeout: float | None = LIMIT,
    compression: Any = None,
    **more: str,
) -> Reply:
    """One unary call. The request is a message, or bytes sent as they are."""
    if made is None:
        with channel(plane) as fresh:
            return call(plane, method, request, key, fresh, timeout, compression, **more)
    data = request if isinstance(request, bytes) else request.SerializeToString()
    asking = made.unary_unary(f"/{method}")
    try:
        answer, ended = asking.with_call(
            data, timeout=timeout, metadata=metadata(key, **more), compression=compression
        )
    except grpc.RpcError as error:
        ended, answer = error, None
    trailers = {name: str(value) for name, value in ended.trailing_metadata() or ()}
    return Reply(ended.code(), ended.details(), trailers, answer)


def ask(plane: Plane, method: str, answer: str, request: Any = b"", **more: Any) -> Any:
    """The answer of a call that must go well, as the message of that name."""
    reply = call(plane, method, request, **more)
    assert reply.code is grpc.StatusCode.OK, reply
    return message(answer).FromString(reply.answer)


def refused(plane: Plane, method: str, request: Any = b"", **more: Any) -> tuple[str, str]:
    """Name and message of the status of a call that must not go well; it is a clean one."""
    reply = call(plane, method, request, **more)
    assert reply.code is not grpc.StatusCode.OK, reply
    for secret in ("Traceback", ".py", "/tmp", "/home", KEY):
        assert secret not in reply.details
    return reply.code.name, reply.details


def tensor(name: str, values: Any, datatype: str = "FP32") -> tuple[str, str, np.ndarray[Any, Any]]:
    """An input."""
    return name, datatype, np.array(values, NUMPY_TYPE[datatype])  # type: ignore[index]


def infer_request(
    name: str, *inputs: tuple[str, str, Any], typed: bool = False, **more: Any
) -> Any:
    """A ModelInferRequest with raw contents, or typed ones."""
    request = message("inference.ModelInferRequest")(model_name=name, **more)
    for tensor_name, datatype, array in inputs:
        given = request.inputs.add(name=tensor_name, datatype=datatype, shape=array.shape)
        if not typed:
            request.raw_input_contents.append(raw.encode(datatype, array))  # type: ignore[arg-type]
            continue
        values = array.ravel().tolist()
        if datatype == "BYTES":
            values = [value.encode() for value in values]
        getattr(given.contents, field_of(datatype)).extend(values)
    return request


def field_of(datatype: str) -> str:
    """The field of typed contents that holds a datatype."""
    if datatype in {"FP32", "FP64", "BOOL", "BYTES", "INT64", "UINT64"}:
        return f"{datatype.lower()}_contents"
    return "uint_contents" if datatype.startswith("U") else "int_contents"


def outputs(answer: Any) -> dict[str, Any]:
    """The outputs of a ModelInferResponse as lists, by name."""
    found = {}
    assert len(answer.outputs) == len(answer.raw_output_contents)
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        array = raw.decode(output.name, output.datatype, output.shape, memoryview(data))
        found[output.name] = array.tolist()
    return found


def infer(plane: Plane, request: Any, **more: Any) -> dict[str, Any]:
    """The outputs of a call that must go well."""
    return outputs(ask(plane, INFER, "inference.ModelInferResponse", request, **more))


ROW = tensor("numeric", [[1, 2, 3]])


def sum_request(*values: float, name: str = "sum", **more: Any) -> Any:
    """A request of one row to the model that adds three numbers and one."""
    return infer_request(name, tensor("numeric", [values or (1, 2, 3)]), **more)


# -- frame by frame

HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", f"/{INFER}".encode()),
    (b":authority", b"x"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"authorization", f"Bearer {KEY}".encode()),
]
OPENING = frames.PREFACE + frames.settings({}) + frames.window_update(0, 2**30)


def block(path: str = INFER, key: str | None = KEY, **more: bytes) -> bytes:
    """A block of headers."""
    fields = [
        (name, f"/{path}".encode() if name == b":path" else value)
        for name, value in HEADERS
        if name != b"authorization"
    ]
    if key is not None:
        fields.append((b"authorization", f"Bearer {key}".encode()))
    fields += [(name.replace("_", "-").encode(), value) for name, value in more.items()]
    return b"".join(encode(*pair) for pair in fields)


def prefixed(request: Any, flag: int = 0) -> bytes:
    """A message with its prefix."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


def request_frames(number: int, request: Any, **more: Any) -> bytes:
    """The frames of a whole unary call."""
    head = frames.frame(frames.HEADERS, frames.END_HEADERS, number, block(**more))
    return head + frames.frame(frames.DATA, frames.END_STREAM, number, prefixed(request))


@dataclass
class Frame:
    """A frame that came."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of a RST_STREAM or GOAWAY."""
        return int.from_bytes(
            self.payload[4:8] if self.kind == frames.GOAWAY else self.payload, "big"
        )


@dataclass
class Peer:
    """A bare connection."""

    plane: Plane
    greet: bool = True
    line: socket.socket = field(init=False)
    rest: bytes = b""
    decoder: Decoder = field(default_factory=lambda: Decoder(1 << 20))

    def __post_init__(self) -> None:
        self.line = socket.create_connection(("127.0.0.1", self.plane.grpc_port), timeout=LIMIT)
        if self.greet:
            self.line.sendall(OPENING)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()

    def send(self, *pieces: bytes) -> None:
        """Send bytes; a connection that is closed meanwhile is no error."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.line.sendall(b"".join(pieces))

    def read(self) -> Frame | None:
        """The next frame; None once the connection is closed."""
        while True:
            if len(self.rest) >= frames.HEAD_BYTES:
                high, low, kind, flags, stream = frames.unpack_head(self.rest)
                end = frames.HEAD_BYTES + (high << 8 | low)
                if len(self.rest) >= end:
                    payload, self.rest = self.rest[frames.HEAD_BYTES : end], self.rest[end:]
                    return Frame(kind, flags, stream, payload)
            try:
                data = self.line.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.rest += data

    def until(self, check: Callable[[Frame], bool]) -> Frame:
        """The first frame of some kind, others left out."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            found = self.read()
            assert found is not None, "the connection was closed"
            if check(found):
                return found
        raise AssertionError("it did not come")

    def closing(self) -> int:
        """The code of the GOAWAY that the connection was ended with, which must follow."""
        code = -1
        while (found := self.read()) is not None:
            if found.kind == frames.GOAWAY:
                code = found.code
                with suppress(OSError):
                    self.line.shutdown(socket.SHUT_WR)
        return code

    def reset(self, stream: int) -> int:
        """The code that a stream is reset with."""
        return self.until(lambda f: f.kind == frames.RST_STREAM and f.stream == stream).code

    def trailers(self, stream: int) -> dict[bytes, bytes]:
        """The headers that end a stream."""
        while True:
            found = self.until(lambda f: f.kind == frames.HEADERS)
            fields = dict(self.decoder.decode(found.payload)[0])
            if found.stream == stream and found.flags & frames.END_STREAM:
                return fields

    def works(self, stream: int = 1) -> None:
        """Make a call on this connection, which must go well."""
        self.send(request_frames(stream, sum_request()))
        assert self.trailers(stream)[b"grpc-status"] == b"0"
