"""gRPC over HTTP/2: who calls, what is called, and messages in and out.

Who calls is decided when the headers are whole, before any of the message is kept. Inference goes
straight from the parser's callbacks to the batcher; only what is large or compressed is read in a
thread. Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md).
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from tapster.contract.errors import Code, TapsterError
from tapster.serving.gate import REFUSAL, REFUSAL_HINT, Pass
from tapster.serving.rest import encodings
from tapster.serving.rest.bodies import invalid
from tapster.serving.rest.routes import Route
from tapster.serving.rpc import frames
from tapster.serving.rpc.calls import Call, explained
from tapster.serving.rpc.connection import Connection
from tapster.serving.rpc.exchanges import NEVER, PREFIX, Exchange
from tapster.serving.rpc.frames import WINDOW, StreamError
from tapster.serving.rpc.heads import Head, read_head
from tapster.serving.rpc.port import Port
from tapster.serving.rpc.statuses import BEGIN, OK, named, plain, refusal
from tapster.serving.slots import REFUSED

T = TypeVar("T")
MAX_HEADS: Final = 64
# Bytes of a message that is parsed on the event loop, of one whose reading is slow, and of a
# compressed one, which may also grow to no more than the first.
AT_ONCE: Final = 1 << 20
AT_ONCE_TYPED: Final = 1 << 16
AT_ONCE_COMPRESSED: Final = 1 << 14


class GrpcProtocol(Connection):
    """A connection whose streams are gRPC calls."""

    def __init__(self, port: Port) -> None:
        service = port.service
        super().__init__(service.settings, port.connections)
        self.service = service
        self._port = port
        self._region = service.region
        self._limit = service.settings.max_body
        self._heads: dict[bytes, Head] = {}
        self._revision = 0
        self._granted = 0
        self._waiting: deque[Exchange] = deque()
        self._authorization = b""
        self._generation = -1
        self._known: Pass | None = None
        self._checked = service.gate.generation

    # -- calls begin

    def _open(self, number: int, block: bytes, ended: bool) -> None:
        try:
            head = self._head(block)
        except StreamError as error:
            self._bother()
            self._write(frames.reset(number, error.code))
            return
        exchange = Exchange(number, head, ended)
        self._streams[number] = exchange
        method = self._port.methods.get(head.path)
        if head.status:
            self._region.refused()
            block, body = plain(head.status, "this port speaks gRPC")
            self._answer(exchange, block, body, b"")
            return
        if method is None or not method.public:
            holder = self.admit(head.authorization)
            if holder is None or (method is not None and not holder.may(method.right)):
                self._turn_away(exchange, holder)
                return
            exchange.holder = holder
        if method is None:
            shown = head.path.decode("ascii", "replace")[:200]
            self.refuse(exchange, TapsterError("unsupported", f"there is no method {shown!r}"))
        elif head.refusal is not None:
            self.refuse(exchange, head.refusal)
        elif self._port.crowded:
            text = "too many calls are open on this server"
            self.refuse(exchange, TapsterError("exhausted", text, hint="try again in a second"))
        else:
            exchange.method = method
            self._begin(exchange)

    def _begin(self, exchange: Exchange) -> None:
        begin = exchange.method.session
        if begin is not None:
            exchange.session = begin(self, exchange)
        elif not exchange.ended:
            exchange.deadline = self._heard + self._settings.receive_timeout
        if exchange.ended:
            self._cut(exchange)

    def _head(self, block: bytes) -> Head:
        """What a block of headers says; the same block says the same while the table stays."""
        decoder = self._decoder
        if decoder.revision != self._revision:
            self._heads.clear()
            self._revision = decoder.revision
        head = self._heads.get(block)
        if head is None:
            head = read_head(*decoder.decode(block))
            if decoder.revision == self._revision:
                if len(self._heads) >= MAX_HEADS:
                    self._heads.clear()
                self._heads[block] = head
        return head

    def admit(self, header: bytes) -> Pass | None:
        """The pass of a key, worked out once for as long as the plan's keys stay the same."""
        gate = self.service.gate
        known = self._known
        if (
            known is None
            or known.expires is not None
            or gate.generation != self._generation
            or header != self._authorization
        ):
            known = gate.admit(header)
            self._known, self._authorization, self._generation = known, header, gate.generation
        return known

    def _turn_away(self, exchange: Exchange, holder: Pass | None) -> None:
        self._region.add(REFUSED)
        code: Code = "forbidden" if holder else "unauthenticated"
        self._refuse_quietly(exchange, TapsterError(code, REFUSAL, hint=REFUSAL_HINT))

    # -- messages in

    def _take(self, stream: Exchange, data: bytes) -> None:
        if stream.buffer is None:
            if stream.ended and stream.session is None:
                size = len(data) - PREFIX
                if 0 <= size <= self._limit and size == int.from_bytes(data[:PREFIX], "big"):
                    stream.deadline = NEVER
                    self._run(stream, 0, data[PREFIX:])
                    return
            stream.buffer = bytearray()
        stream.buffer += data
        self._cut(stream)

    def _cut(self, exchange: Exchange) -> None:
        """Take whole messages out of what has come, and see to it that the rest can come."""
        try:
            if self._take_messages(exchange):
                self._take_rest(exchange)
        except TapsterError as error:
            if exchange.id in self._streams:
                self.refuse(exchange, error)

    def _take_messages(self, exchange: Exchange) -> bool:
        """Whether the exchange goes on and all of its whole messages are taken."""
        while True:
            session = exchange.session
            if session is not None and session.full:
                return False
            found = exchange.cut(self._limit)
            if found is None:
                return True
            if session is None:
                if exchange.message is not None:
                    raise invalid("this method takes one message")
                exchange.message = found
                continue
            self._release(exchange)
            exchange.deadline = NEVER
            session.take(*found)
            if exchange.id not in self._streams:
                return False

    def _take_rest(self, exchange: Exchange) -> None:
        session = exchange.session
        if exchange.ended:
            exchange.deadline = NEVER
            if exchange.buffer:
                raise TapsterError("internal", "the last message is cut short")
            if session is not None:
                session.end()
            elif exchange.message is None:
                raise TapsterError("internal", "there is no message")
            else:
                self._run(exchange, *exchange.message)
        elif exchange.buffer:
            if exchange.deadline == NEVER and not exchange.waits:
                exchange.deadline = self._heard + self._settings.receive_timeout
            self._widen(exchange)
        elif session is not None and exchange.used > WINDOW // 2:
            self._write(frames.window_update(exchange.id, exchange.used))
            exchange.room = WINDOW

    def _widen(self, exchange: Exchange) -> None:
        """Let the caller send all of a long message, unless too many others do that already."""
        lacking = exchange.lacking
        if not lacking or exchange.waits:
            return
        if self._granted and self._granted + lacking > self._limit:
            exchange.waits = True
            exchange.deadline = NEVER
            self._waiting.append(exchange)
            return
        exchange.waits = False
        exchange.deadline = self._loop.time() + self._settings.receive_timeout
        exchange.grant += lacking
        self._granted += lacking
        exchange.room += lacking
        self._write(frames.window_update(exchange.id, lacking))

    def _release(self, exchange: Exchange) -> None:
        """A long message is done with: let the next one come."""
        self._granted -= exchange.grant
        exchange.grant = 0
        while self._waiting:
            waiting = self._waiting[0]
            if waiting.id in self._streams:
                waiting.waits = False
                self._waiting.popleft()
                self._widen(waiting)
                if waiting.waits:
                    return
            else:
                self._waiting.popleft()

    # -- what is called

    def _run(self, exchange: Exchange, flag: int, data: bytes) -> None:
        method = exchange.method
        if method.wire is not None:
            call = exchange.call = Call(self, method.wire, self._region, exchange)
            self.infer(call, flag, data)
            return
        try:
            assert method.answers is not None
            data = self.inflated(exchange, flag, data)
            holder = None if method.public else exchange.holder
            answer = method.answers(self.service, holder, method.request.FromString(data))
            self._send_all(exchange, answer.SerializeToString(), self._identity(exchange))
        except Exception as error:
            self.refuse(exchange, explained(error))

    def infer(self, call: Call, flag: int, data: bytes) -> None:
        """Read a message and submit the call; at once if that is quick."""
        try:
            size = len(data)
            if size > (AT_ONCE_COMPRESSED if flag else AT_ONCE):
                self._later(call, flag, data)
                return
            if flag:
                data = self._inflated(call.exchange, data, self._limit)
            message = call.wire.parse(data)
            if len(data) > AT_ONCE_TYPED and call.wire.slow(message):
                self._later(call, 0, data)
                return
            self._aim(call, message)
            call.wire.read(call, message)
            call.target.submit(call)
        except Exception as error:
            call.fail(error)

    def _later(self, call: Call, flag: int, data: bytes) -> None:
        task = self._loop.create_task(self._infer_slowly(call, flag, data))
        self._port.tasks.add(task)
        task.add_done_callback(self._port.tasks.discard)

    async def _infer_slowly(self, call: Call, flag: int, data: bytes) -> None:
        """Read a large message in a thread. What it names may change its model meanwhile."""
        try:
            if flag:
                data = await self._in_thread(self._inflated, call.exchange, data, self._limit)
            message = await self._in_thread(call.wire.parse, data)
            del data
            engine = self.service.engine
            generation, model = -1, None
            while not call.done and generation != engine.generation:
                generation = engine.generation
                self._aim(call, message)
                if model is not call.target.model:
                    model = call.target.model
                    await self._in_thread(call.wire.read, call, message)
            if not call.done:
                call.target.submit(call)
        except Exception as error:
            if not call.done:
                call.fail(error)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(self.service.reader.pool, work, *arguments)

    def _inflated(self, exchange: Exchange, data: bytes, limit: int) -> bytes:
        coding = exchange.head.encoding
        if not coding:
            raise TapsterError("internal", "a compressed message came without grpc-encoding")
        return encodings.inflate(coding, data, limit)

    def inflated(self, exchange: Exchange, flag: int, data: bytes) -> bytes:
        """A short message, decompressed if its flag says so. Raises TapsterError."""
        return self._inflated(exchange, data, AT_ONCE) if flag else data

    def _aim(self, call: Call, message: Any) -> None:
        """Find what a message is for: where it is counted, what runs it, until when."""
        exchange = call.exchange
        name, version, label = call.wire.wanted(call, message)
        service, holder = self.service, exchange.holder
        endpoint = service.engine.find(holder.tenant, name)
        if endpoint is None:
            endpoint = service.endpoint(holder, Route("rpc", name=name))
        call.place = endpoint.place
        call.series = service.engine.series(endpoint, holder)
        target = endpoint.target(version, label, exchange.head.sticky)
        if target is None:
            target = service.target(endpoint, Route("rpc", name=name, version=version, label=label))
        call.target = target
        call.place = target.place
        call.deadline = min(
            call.began / 1e9 + endpoint.plan.options.deadline,
            exchange.expires,
        )

    # -- answers out

    def succeeded(self, call: Call, body: bytes) -> None:
        """See Line."""
        exchange: Exchange = call.exchange
        if exchange.id in self._streams:
            self._send_all(exchange, body, call.identity or self.new_identity())

    def failed(self, call: Call, error: TapsterError) -> None:
        """See Line."""
        exchange: Exchange = call.exchange
        if exchange.id in self._streams:
            identity = call.identity or self.new_identity()
            self._answer(exchange, BEGIN + refusal(error, identity), b"", b"")

    def new_identity(self) -> bytes:
        """See Line."""
        return self.service.heads.identify()

    def send(self, exchange: Exchange, body: bytes) -> None:
        """Send one of several messages."""
        if exchange.id not in self._streams:
            return
        begin = b"" if exchange.begun else BEGIN
        exchange.begun = True
        self._answer(exchange, begin, b"\0%b%b" % (len(body).to_bytes(4, "big"), body), b"")

    def finish(self, exchange: Exchange) -> None:
        """All messages are sent, and all is well."""
        if exchange.id not in self._streams:
            return
        tail = OK + named(self._identity(exchange))
        begin, tail = (b"", tail) if exchange.begun else (BEGIN + tail, b"")
        self._answer(exchange, begin, b"", tail)

    def refuse(self, exchange: Exchange, error: TapsterError) -> None:
        """End a call that has reached no endpoint with an error."""
        self._region.refused()
        self._refuse_quietly(exchange, error)

    def _refuse_quietly(self, exchange: Exchange, error: TapsterError) -> None:
        tail = refusal(error, self._identity(exchange))
        if exchange.session is not None:
            exchange.session.gone()
        begin, tail = (b"", tail) if exchange.begun else (BEGIN + tail, b"")
        self._answer(exchange, begin, b"", tail)

    def _send_all(self, exchange: Exchange, body: bytes, identity: bytes) -> None:
        data = b"\0%b%b" % (len(body).to_bytes(4, "big"), body)
        self._answer(exchange, BEGIN, data, OK + named(identity))

    def _identity(self, exchange: Exchange) -> bytes:
        return exchange.head.identity or self.new_identity()

    def resume(self, exchange: Exchange) -> None:
        """A session has room for messages again."""
        if exchange.id in self._streams and (exchange.buffer or exchange.ended):
            self._cut(exchange)

    # -- the connection

    @property
    def open(self) -> int:
        """Calls that have not ended."""
        return len(self._streams)

    @property
    def in_flight(self) -> int:
        """Calls that wait for their answer."""
        return sum(each.session is None or each.session.busy for each in self._streams.values())

    def check(self, now: float) -> None:
        """See Connection. Ends calls whose time is over, or whose key is no longer valid."""
        super().check(now)
        generation = self.service.gate.generation
        keys = generation != self._checked or (
            self._known is not None and self._known.expires is not None
        )
        self._checked = generation
        for exchange in list(self._streams.values()):
            if exchange.session is not None:
                exchange.session.tick()
            error = self._overdue_call(exchange, now, keys)
            if error is not None:
                if exchange.call is not None:
                    exchange.call.done = True
                self._refuse_quietly(exchange, error)

    def _overdue_call(self, exchange: Exchange, now: float, keys: bool) -> TapsterError | None:
        if exchange.deadline < now:
            return TapsterError("deadline", "the message did not arrive in time")
        session = exchange.session
        if session is None:
            return None
        if exchange.expires < now:
            return TapsterError("deadline", "the call's time is over")
        if keys and not exchange.method.public:
            holder = self.admit(exchange.head.authorization)
            if holder is None or not holder.may(exchange.method.right):
                return TapsterError("unauthenticated", REFUSAL, hint=REFUSAL_HINT)
        if self.service.draining and not (session.busy or exchange.buffer):
            return TapsterError("unavailable", "the server is stopping", hint="try again")
        return None

    def _unblocked(self, stream: Exchange) -> None:
        if stream.session is not None:
            stream.session.advance()

    def _freed(self, stream: Exchange) -> None:
        if stream.grant:
            self._release(stream)
        super()._freed(stream)

    def _gone(self, stream: Exchange) -> None:
        if stream.call is not None:
            stream.call.done = True
        if stream.session is not None:
            stream.session.gone()

    def _refuse_stranger(self, data: bytes) -> None:
        """See Connection. Somebody who speaks HTTP/1 is told so in HTTP/1."""
        self._deaf = True
        if b"HTTP/1." in data[:4096]:
            text = b'{"error":"this port speaks gRPC; HTTP/1.1 is answered on the REST port"}'
            self._write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)
            )
        self._hang_up()
