"""gRPC over HTTP/2: who calls, what is called, and messages in.

Who calls is decided when the headers are whole, before any of the message is kept. Inference goes
straight from the parser's callbacks to the batcher; only what is large or compressed is read in a
thread. Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md).
"""

from collections.abc import Awaitable, Coroutine
from inspect import isawaitable
from typing import Any, Final, TypeVar, cast

from tapster.contract.errors import TapsterError
from tapster.serving.bills import Bill
from tapster.serving.gate import Pass, denial
from tapster.serving.rest.calls import crowded
from tapster.serving.rest.routes import Route
from tapster.serving.rpc import open_inference
from tapster.serving.rpc.calls import Call, Wire, reported
from tapster.serving.rpc.connection import NEVER
from tapster.serving.rpc.exchanges import Exchange
from tapster.serving.rpc.heads import Head, read_head
from tapster.serving.rpc.inflating import AT_ONCE, Inflating
from tapster.serving.rpc.port import Port
from tapster.serving.rpc.repeats import Repeat, Repeats
from tapster.serving.rpc.statuses import plain

T = TypeVar("T")
OPEN: Final = cast(Wire, open_inference)
MAX_HEADS: Final = 64
# Bytes of a block of headers that is remembered.
MAX_HEAD: Final = 4096
# Bytes of a message that is read on the event loop though that is slow, and of a compressed one.
AT_ONCE_TYPED: Final = 1 << 16
AT_ONCE_COMPRESSED: Final = 1 << 14


class GrpcProtocol(Inflating):
    """A connection whose streams are gRPC calls."""

    def __init__(self, port: Port) -> None:
        super().__init__(port.service, port.connections)
        self._port = port
        self._heads: dict[bytes, Head] = {}
        self._revision = 0
        self._authorization = b""
        self._generation = -1
        self._known: Pass | None = None
        self._repeats = Repeats()
        self._lesson: tuple[Call, Bill] | None = None

    # -- calls begin

    def _open(self, number: int, block: bytes, ended: bool) -> None:
        head = self._head(block)
        exchange = Exchange(self, number, head, ended)
        self._streams[number] = exchange
        self._share.spent += 1
        method = self._port.methods.get(head.path)
        if head.status:
            self._region.refused()
            self._answer(exchange, plain(head.status), b"", b"")
            return
        if method is None or not method.public:
            holder = self.admit(head.authorization)
            if holder is None or (method is not None and not holder.may(method.right)):
                self.refuse(exchange, denial(holder))
                return
            exchange.holder = holder
            exchange.generation = self.service.gate.generation
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
            if decoder.revision == self._revision and len(block) <= MAX_HEAD:
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
            or known.ended
            or known.expires is not None
            or gate.generation != self._generation
            or header != self._authorization
        ):
            known = gate.admit(header)
            self._known, self._authorization, self._generation = known, header, gate.generation
        if known is not None and known.tenant != self._share.tenant:
            self._share = self.service.shares.of(known.tenant)
        return known

    # -- what was called before

    def _again(self, data: bytes, at: int) -> int:
        repeats, service = self._repeats, self.service
        size = repeats.size
        if not size or service.tracer is not None or self._port.crowded:
            return 0
        repeat = repeats.find(data, at, self._stamp)
        if repeat is None or repeat.holder.ended:
            return 0
        number = int.from_bytes(data[at + 5 : at + 9], "big")
        if not self._takes(number, repeats.data):
            return 0
        exchange = Exchange(self, number, repeat.head, True)
        holder = exchange.holder = repeat.holder
        exchange.method = repeat.method
        if holder.tenant != self._share.tenant:
            self._share = service.shares.of(holder.tenant)
        self._share.spent += 1
        self._streams[number] = exchange
        call = exchange.call = Call(self, OPEN, self._region, exchange)
        target = call.target = repeat.target
        call.place, call.account = target.place, repeat.account
        call.inputs, call.rows = data[at + size - repeats.tensor : at + size], repeat.rows
        longest = target.endpoint.plan.options.deadline
        call.deadline = min(call.began / 1e9 + longest, exchange.expires)
        try:
            self._submit(call)
        except Exception as error:
            call.fail(error)
        return size

    def _repeatable(self, call: Call, message: Any) -> bool:
        """Whether another request like this one, but for its tensor, will ask for the same."""
        exchange = call.exchange
        target = call.target
        return (
            isinstance(call.inputs, bytes)
            and self._revision == self._decoder.revision  # its headers change no table
            and exchange.session is None
            and exchange.holder.expires is None
            and not exchange.head.sticky
            and (target is target.endpoint.only or bool(message.model_version))
            and not (message.id or message.outputs or message.parameters)
        )

    def _learn(self, data: bytes, start: int, end: int) -> None:
        lesson, self._lesson = self._lesson, None
        if lesson is None or lesson[0].exchange.id != int.from_bytes(data[start + 5 : start + 9]):
            return
        call, account = lesson  # since then, what it has reserved may count for it
        exchange = call.exchange
        repeat = Repeat(
            exchange.head, exchange.holder, exchange.method, call.target, account, call.rows
        )
        self._repeats.learn(data[start:end], len(call.inputs), self._stamp, repeat)

    @property
    def _stamp(self) -> tuple[int, int]:
        """Another one once what was learned before may no longer hold."""
        service = self.service
        return self._decoder.revision, service.gate.generation + service.engine.generation

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
            if isawaitable(answer):
                self._keep(self._answer_later(exchange, answer))
            else:
                self._send_all(exchange, answer.SerializeToString(), self._identity(exchange))
        except Exception as error:
            self.refuse(exchange, reported(error))

    async def _answer_later(self, exchange: Exchange, answer: Awaitable[Any]) -> None:
        try:
            found = await answer
            if exchange.id in self._streams:
                body = found.SerializeToString()
                self._send_all(exchange, body, self._identity(exchange))
        except Exception as error:
            if exchange.id in self._streams:
                self.refuse(exchange, reported(error))

    def infer(self, call: Call, flag: int, data: bytes) -> None:
        """Read a message and submit the call; at once if that is quick."""
        if self.service.tracer is not None:
            exchange = call.exchange
            self.service.tracer.begin(call, exchange.head.parent, exchange.method.operation)
        try:
            size = len(data)
            if size > (AT_ONCE_COMPRESSED if flag else AT_ONCE):
                self._later(call, flag, data)
                return
            if flag:
                found = self._inflated_at_once(call.exchange, data)
                if found is None:
                    self._later(call, flag, data)
                    return
                data = found
                self._grown(call, len(data) - size)
            message = call.wire.parse(data)
            if len(data) > AT_ONCE_TYPED and call.wire.slow(message):
                self._later(call, 0, data)
                return
            self._aim(call, message)
            call.wire.read(call, message)
            if self._repeats.hopeful and self._repeatable(call, message):
                self._lesson = call, call.account
            self._submit(call)
        except Exception as error:
            call.fail(error)

    def _submit(self, call: Call) -> None:
        if call.account.meters is None:
            call.target.submit(call)
        else:
            self.service.limiter.submit(call, call.target)

    def _later(self, call: Call, flag: int, data: bytes) -> None:
        self._keep(self._infer_slowly(call, flag, data))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._port.tasks.add(task)
        task.add_done_callback(self._port.tasks.discard)

    async def _infer_slowly(self, call: Call, flag: int, data: bytes) -> None:
        """Read a large message in a thread. What it names may change its model meanwhile."""
        try:
            if flag:
                size = len(data)
                data = await self._in_thread(call, self._inflated, call.exchange, data, self._limit)
                self._grown(call, len(data) - size)
            message = await self._in_thread(call, call.wire.parse, data)
            del data
            engine = self.service.engine
            generation, model = -1, None
            while not call.done and generation != engine.generation:
                generation, asked = engine.generation, call.deadline or NEVER
                self._aim(call, message)
                call.deadline = min(call.deadline, asked)  # what was read may say a shorter one
                if model is not call.target.model:
                    model = call.target.model
                    await self._in_thread(call, call.wire.read, call, message)
            if not call.done:
                self._submit(call)
        except Exception as error:
            if not call.done:
                call.fail(error)

    def _aim(self, call: Call, message: Any) -> None:
        """Find what a message is for: where it is counted, what runs it, until when."""
        exchange = call.exchange
        name, version, label = call.wire.wanted(call, message)
        service, holder = self.service, exchange.holder
        endpoint = service.engine.find(holder.tenant, name) if holder.names(name) else None
        if endpoint is None:
            endpoint = service.endpoint(holder, Route("rpc", name=name))
        call.place = endpoint.place
        target = endpoint.target(version, label, exchange.head.sticky)
        if target is None:
            call.account = service.accounts.unserved(holder, endpoint)
            target = service.target(endpoint, Route("rpc", name=name, version=version, label=label))
        call.target = target
        call.place = target.place
        call.account = service.accounts.find(holder, target)
        began = call.began / 1e9
        call.deadline = min(began + endpoint.plan.options.deadline, exchange.expires)
        if call.deadline <= began:
            raise TapsterError("deadline", "the call's time was over before it began")

    # -- the connection

    def resume(self, exchange: Exchange) -> None:
        """A session has room for messages again; its caller may have none to send them."""
        if exchange.id in self._streams:
            self._cut(exchange)

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
        self._repeats.forget(self._stamp)
        self._lesson = None
        for exchange in list(self._streams.values()):
            try:
                if exchange.session is not None:
                    exchange.session.tick()
                    self.still_admit(exchange)
                self._check_time(exchange, now)
            except TapsterError as error:
                if exchange.call is not None:
                    exchange.call.done = True
                self.refuse(exchange, error)

    def _check_time(self, exchange: Exchange, now: float) -> None:
        """Raises TapsterError for a call that is over."""
        if exchange.deadline < now:
            if exchange.asked:
                raise crowded("messages")
            raise TapsterError("deadline", "the message did not arrive in time")
        session = exchange.session
        if session is None:
            return
        if exchange.expires < now:
            raise TapsterError("deadline", "the call's time is over")
        if self.service.draining and not (session.busy or exchange.buffer):
            raise TapsterError("unavailable", "the server is stopping", hint="try again")

    def still_admit(self, exchange: Exchange) -> None:
        """See Carrier."""
        generation = self.service.gate.generation
        if exchange.method.public or (
            generation == exchange.generation
            and exchange.holder.expires is None
            and not exchange.holder.ended
        ):
            return
        holder = self.admit(exchange.head.authorization)
        if holder is None or not holder.may(exchange.method.right):
            raise denial(holder)
        exchange.holder, exchange.generation = holder, generation

    def _unblocked(self, stream: Exchange) -> None:
        if stream.session is not None:
            stream.session.advance()

    def _gone(self, stream: Exchange) -> None:
        if stream.call is not None:
            stream.call.done = True
        if stream.session is not None:
            stream.session.gone()

    def _answerable(self, stream: Exchange) -> bool:
        session = stream.session
        return stream.ended and (session is None or session.busy)

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
