"""Several models answering as one: f(x) = sum of w_i f_i(x).

Every member runs each request in its own queue, beside the others, until shortly before the
request's deadline. A member that fails or is late is left out: the others' weights are scaled to
sum to one again, and the answer's note says so. What members answered is averaged once for all
requests that they answered together.
"""

import asyncio
import time
from collections.abc import Sequence
from copy import copy
from typing import Any, Final

import msgspec

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.serving.batcher import Answer, Failure, Inputs, Work
from tapster.serving.bills import Bill, Unbilled
from tapster.serving.blending import Blend
from tapster.serving.layouts import relay
from tapster.serving.model import Model
from tapster.serving.slots import Region
from tapster.serving.traffic import Inner, count_failure
from tapster.serving.work import deliver

# Kept of a request's time for averaging and writing: so many seconds, at most such a share.
RESERVE: Final = 0.05
RESERVE_SHARE: Final = 0.1


def as_one(first: Model) -> Model:
    """What wires see of an ensemble: the first member, without its batcher."""
    model = copy(first)
    vars(model).pop("batcher", None)
    model.manifest = msgspec.structs.replace(first.manifest, runtime="ensemble", metrics={})
    model.spelled = {}
    return model


class Ensemble:
    """The members of one endpoint. All methods but `Part.render` run on the event loop.

    Raises TapsterError(unprocessable) for members that cannot answer as one.
    """

    def __init__(self, members: Sequence[Inner], region: Region) -> None:
        self._loop = asyncio.get_running_loop()
        self._region = region
        self.members = tuple(members)
        first = members[0].model.signature
        for member in members:
            other = member.model.signature
            if (other.outputs, other.classes) != (first.outputs, first.classes):
                raise TapsterError("unprocessable", "the members do not answer alike")
        self._blend = Blend(first)
        self._relays = [relay(first, member.model.signature) for member in members]
        self._asks: dict[Ask, None] = {}
        self._complete: list[Ask] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def submit(self, work: Work) -> None:
        """Run a request by every member; see Target."""
        now = time.monotonic()
        reserve = min(RESERVE, RESERVE_SHARE * max(work.deadline - now, 0.0))
        ask = Ask(self, work, work.deadline - reserve)
        self._asks[ask] = None
        self._arm(ask.until)
        for part, translate in zip(ask.parts, self._relays, strict=True):
            try:
                part.inputs = translate(work.inputs)
                part.member.submit(part)
            except Exception as error:
                part.fail(error)

    def failed(self, part: "Part", error: Failure) -> None:
        """Count a member's failure."""
        count_failure(self._region, part, error)

    def completed(self, ask: "Ask") -> None:
        """Every member has answered or failed."""
        del self._asks[ask]
        if not self._complete:
            self._loop.call_soon(self._answer)
        self._complete.append(ask)

    def _arm(self, until: float) -> None:
        """Look again at `until`, or before."""
        if self._timer is not None:
            if until >= self._due:
                return
            self._timer.cancel()
        self._due = until
        self._timer = self._loop.call_later(until - time.monotonic(), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        for ask in [ask for ask in self._asks if ask.until <= now]:
            if ask.work.done:  # the caller is gone, and with it every part
                del self._asks[ask]
                ask.let_go()
            else:
                ask.expire()
        if self._asks:
            self._arm(min(ask.until for ask in self._asks))

    def _answer(self) -> None:
        complete, self._complete = self._complete, []
        groups: dict[object, list[Ask]] = {}
        for ask in complete:
            if not ask.work.done:
                groups.setdefault(ask.company(), []).append(ask)
        for asks in groups.values():
            self._answer_group(asks)
        for ask in complete:
            ask.let_go()

    def _answer_group(self, asks: "list[Ask]") -> None:
        """Answer requests that the same members answered in the same batches."""
        began = time.monotonic_ns()
        try:
            answer, alone = self._mean(asks)
        except Exception as error:
            deliver(self._region, [(ask.work, error) for ask in asks], began, 0)
            return
        spent = sum(ask.effort.compute for ask in asks) + time.monotonic_ns() - began
        outcomes: list[tuple[Work, bytes | Failure]] = []
        for ask in asks:
            try:
                outcomes.append((ask.work, ask.work.render(answer, 0 if alone else ask.first)))
            except Exception as error:
                outcomes.append((ask.work, error))
        deliver(self._region, outcomes, max(ask.began for ask in asks), spent)

    def _mean(self, asks: "list[Ask]") -> tuple[Answer, bool]:
        """The mean answer, and whether it holds the rows of one request only.

        Raises the members' error when none has answered.
        """
        ask = asks[0]
        parts = [part for part in ask.parts if part.answer is not None]
        if not parts:
            raise _all_failed(ask.parts)
        whole = sum(part.member.weight for part in parts)
        weights = [part.member.weight / whole for part in parts]
        alone = not ask.aligned
        arrays = [part.rows_of_it() if alone else part.every_row() for part in parts]
        rows, requests = (ask.work.rows, 1) if alone else parts[0].extent()
        answer = Answer(self._blend(arrays, weights), rows, requests)
        if len(parts) < len(ask.parts):
            answer.note = _note(ask.parts, weights)
        return answer, alone


class Effort(Unbilled):
    """What members have computed for one request, in nanoseconds."""

    def __init__(self) -> None:
        self.compute = 0

    def served(self, requests: int, rows: int, compute: int, cached: int = 0) -> None:
        """See Bill."""
        self.compute += compute


class Ask:
    """A request and what has become of it at each member."""

    __slots__ = ("_ensemble", "_left", "began", "effort", "parts", "until", "work")

    def __init__(self, ensemble: Ensemble, work: Work, until: float) -> None:
        self._ensemble = ensemble
        self._left = len(ensemble.members)
        self.work = work
        self.until = until
        self.began = time.monotonic_ns()
        self.effort = Effort()
        self.parts = [Part(ensemble, self, member) for member in ensemble.members]

    @property
    def first(self) -> int:
        """Where the request's rows begin in every member's batch, when `aligned`."""
        return next(part.first for part in self.parts if part.answer is not None)

    @property
    def aligned(self) -> bool:
        """Whether the members' batches held the same number of rows, and this one's in one place.

        A batch of nothing but this request counts as not aligned: it may have no rows at all.
        """
        answers = [part.answer for part in self.parts if part.answer is not None]
        firsts = {part.first for part in self.parts if part.answer is not None}
        sizes = {(answer.rows, answer.alone, answer.singly) for answer in answers}
        return len(firsts) == len(sizes) == 1 and not answers[0].alone

    def company(self) -> object:
        """Equal for requests that can be answered by one mean."""
        if not self.aligned:
            return id(self)
        return tuple(part.outcome() for part in self.parts)

    def returned(self) -> None:
        """One member more has answered or failed."""
        self._left -= 1
        if not self._left:
            self._ensemble.completed(self)

    def let_go(self) -> None:
        """Let go of the parts, which refer to this in turn: it is to go at once, with all that was
        answered, not when garbage is collected."""
        self.parts = []

    def expire(self) -> None:
        """The time is up: whoever has not answered has failed."""
        for part in self.parts:
            part.fail(TapsterError("deadline", "it did not answer in time"))


class Part:
    """A request as one member is asked it; Work for its batcher."""

    __slots__ = (
        "_ask",
        "_ensemble",
        "_over",
        "_rendered",
        "account",
        "answer",
        "began",
        "deadline",
        "error",
        "first",
        "inputs",
        "member",
        "place",
        "rows",
        "tenant",
    )

    def __init__(self, ensemble: Ensemble, ask: Ask, member: Inner) -> None:
        work = ask.work
        self._ensemble = ensemble
        self._ask = ask
        self._over = False
        self.member = member
        self.inputs: Inputs = work.inputs
        self.rows = work.rows
        self.deadline = ask.until
        self.began = ask.began
        self.place = member.place
        self.account: Bill = ask.effort
        self.tenant = work.tenant
        # What the model's thread has done counts from `succeed` on, which is on the event loop.
        self._rendered: tuple[Answer | None, int] = (None, 0)
        self.answer: Answer | None = None
        self.first = 0
        self.error: Failure | None = None

    @property
    def done(self) -> bool:
        """Also once the caller is gone: then no member need run it."""
        return self._over or self._ask.work.done

    @done.setter
    def done(self, over: bool) -> None:
        self._over = over

    def identify(self) -> str:
        """See Work."""
        return self._ask.work.identify()

    def render(self, answer: Answer, first: int) -> bytes:
        """See Work: only keeps where the answer is."""
        self._rendered = (answer, first)
        return b""

    def withhold(self, size: int) -> None:
        """See Work."""

    def succeed(self, body: bytes) -> None:
        """See Work."""
        self._over = True
        self.answer, self.first = self._rendered
        self._ask.returned()

    def fail(self, error: Failure) -> None:
        """See Work. Whatever happens once it is done is no news."""
        if self.done:
            return
        self._over = True
        self.error = error
        self._ensemble.failed(self, error)
        self._ask.returned()

    def outcome(self) -> object:
        """The batch that answered, or the code of the error."""
        return id(self.answer) if self.answer is not None else self.code()

    def code(self) -> str:
        """The code of the member's error."""
        return self.error.code if isinstance(self.error, TapsterError) else "internal"

    def every_row(self) -> Sequence[Array]:
        """The arrays of the whole batch."""
        assert self.answer is not None
        return self.answer.arrays

    def rows_of_it(self) -> Sequence[Array]:
        """The arrays of this request."""
        arrays = self.every_row()
        if self.answer is not None and self.answer.alone:
            return arrays
        return [array[self.first : self.first + self.rows] for array in arrays]

    def extent(self) -> tuple[int, int]:
        """Rows of the batch, and a number of requests that says what its Answer says of them."""
        assert self.answer is not None
        return self.answer.rows, self.answer.rows if self.answer.singly else 0


def _note(parts: Sequence[Part], weights: Sequence[float]) -> dict[str, Any]:
    """What an answer says of the members that it lacks; values are texts, as every wire has."""
    failed = [f"{part.member.name} ({part.code()})" for part in parts if part.answer is None]
    names = [part.member.name for part in parts if part.answer is not None]
    shares = [f"{name}={weight:.6g}" for name, weight in zip(names, weights, strict=True)]
    return {"failed_members": ", ".join(failed), "answered_by": ", ".join(shares)}


def _all_failed(parts: Sequence[Part]) -> Failure:
    heaviest = max(parts, key=lambda part: part.member.weight)
    error = heaviest.error
    if not isinstance(error, TapsterError):
        return error or TapsterError("internal", "no member has answered")
    if {part.code() for part in parts} == {"deadline"}:
        return TapsterError("deadline", "no member of the ensemble answered in time")
    return TapsterError(
        error.code,
        f"every member of the ensemble failed; {heaviest.member.name}: {error.message}",
        hint=error.hint,
        field=error.field,
        retry_after=error.retry_after,
    )
