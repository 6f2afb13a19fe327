"""Runs of a model in a process of its own, asked over a line: the tensors lie in shared memory."""

from collections.abc import Sequence
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.runtimes.isolated import MIB, Limits
from tapster.runtimes.isolated.frames import (
    Garbled,
    Line,
    Need,
    Outputs,
    Refusal,
    Room,
    Run,
)
from tapster.runtimes.isolated.segments import KEEP, Segment
from tapster.runtimes.isolated.tensors import Parcel, unpack

# A model that looks at its deadline itself answers shortly after it.
GRACE: Final = 0.1


class Runs:
    """The runs that one process is asked for, one at a time."""

    def __init__(self, line: Line, limits: Limits) -> None:
        self._line = line
        self._limits = limits
        self._inputs: Segment | None = None
        self._outputs: Segment | None = None
        self._turn = 0

    @property
    def shared(self) -> int:
        """Bytes of the memory that is shared with the process."""
        return sum(each.size for each in (self._inputs, self._outputs) if each is not None)

    def ask(
        self, inputs: dict[str, Array], outputs: Sequence[str], deadline: float
    ) -> dict[str, Array]:
        """Run the model.

        Raises what it raises, TapsterError(invalid, too_large, unavailable), Silence, Lost, and
        Garbled or ValueError for what is no answer.
        """
        self._turn += 1
        parcel = self._parcel(inputs)
        self._send(parcel, outputs, deadline)
        answers = self._taken(self._heard(deadline))
        self.give_back_large()
        return answers

    def over(self, until: float) -> bool:
        """Hear what the process says of a run that nobody waits for; whether that has ended.

        Raises Lost, Silence, and Garbled for what is no answer.
        """
        word, _ = self._line.hear(until)
        if not isinstance(word, Outputs | Refusal | Need) or word.turn != self._turn:
            raise Garbled
        if isinstance(word, Need):
            self._line.say(Room(False), until)
            return False
        return True

    def give_back_large(self) -> None:
        """Keep no more memory than runs usually need."""
        if self._inputs is not None and self._inputs.size > KEEP:
            self._inputs.close()
            self._inputs = None
        if self._outputs is not None and self._outputs.size > KEEP:
            self._outputs.close()
            self._outputs = None

    def close(self) -> None:
        """Keep no memory."""
        for segment in (self._inputs, self._outputs):
            if segment is not None:
                segment.close()

    def _parcel(self, inputs: dict[str, Array]) -> Parcel:
        try:
            parcel = Parcel(inputs)
        except (TypeError, ValueError) as error:
            raise TapsterError(
                "invalid", f"the inputs cannot be passed to the model: {error}"
            ) from None
        if parcel.size > self._limits.largest:
            raise _too_large("inputs", parcel.size, self._limits.largest)
        return parcel

    def _send(self, parcel: Parcel, outputs: Sequence[str], deadline: float) -> None:
        grown = parcel.size > (self._inputs.size if self._inputs else 0)
        if grown:
            self._inputs = _replaced(self._inputs, parcel.size)
        parcel.put(self._inputs)
        run = Run(self._turn, parcel.tensors, list(outputs), deadline, grown)
        descriptor = self._inputs.descriptor if grown and self._inputs else -1
        self._line.say(run, deadline + GRACE, descriptor)

    def _heard(self, deadline: float) -> Outputs | Refusal:
        word, _ = self._line.hear(deadline + GRACE)
        if isinstance(word, Need) and word.turn == self._turn:
            if word.size > self._limits.largest:
                self._line.say(Room(False), deadline + GRACE)
                self._line.hear(deadline + GRACE)
                self.give_back_large()
                raise _too_large("answer", word.size, self._limits.largest)
            self._outputs = _replaced(self._outputs, word.size)
            self._line.say(Room(True), deadline + GRACE, self._outputs.descriptor)
            word, _ = self._line.hear(deadline + GRACE)
        if not isinstance(word, Outputs | Refusal) or word.turn != self._turn:
            raise Garbled
        return word

    def _taken(self, word: Outputs | Refusal) -> dict[str, Array]:
        """The answer, out of the shared memory; raises the error it is."""
        if isinstance(word, Outputs):
            found = unpack(word.outputs, self._outputs)
            return {name: array.copy() for name, array in found.items()}
        self.give_back_large()
        if word.memory:
            raise TapsterError(
                "unavailable",
                f"the model's process {short(self._limits).removeprefix('it ')}",
                hint="send fewer rows, or have its limit of memory raised",
            )
        raise TapsterError.from_dict(word.error)


def short(limits: Limits) -> str:
    """How a process ends that has outgrown its limit."""
    return f"it ran out of its memory limit of {limits.memory // MIB} MiB"


def _replaced(segment: Segment | None, size: int) -> Segment:
    if segment is not None:
        segment.close()
    return Segment.make(size)


def _too_large(what: str, size: int, largest: int) -> TapsterError:
    return TapsterError(
        "too_large",
        f"the {what} of this run would take {size // MIB} MiB; at most {largest // MIB} are passed",
        hint="send fewer rows at a time",
    )
