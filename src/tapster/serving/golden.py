"""A canary's recorded answers, asked of it again where it serves: through its own queue."""

import time
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Manifest
from tapster.runtimes import parity
from tapster.runtimes.parity import Vector
from tapster.serving.batcher import Answer, Failure, Inputs
from tapster.serving.places import Hold
from tapster.serving.slots import GOLDEN_DIFFERENT, GOLDEN_SAME, Region
from tapster.serving.traffic import Inner

PATIENCE: Final = 30.0


def ask(canary: Inner, counted: Hold, region: Region) -> None:
    """Ask for every answer that the model has kept; the outcomes are counted where `counted` is."""
    for vector in canary.model.golden:
        question = Question(canary, vector, counted, region)
        try:
            canary.submit(question)
        except TapsterError as error:
            question.fail(error)


class Question:
    """A recorded batch as Work. An error counts as another answer, a full queue as none."""

    def __init__(self, canary: Inner, vector: Vector, counted: Hold, region: Region) -> None:
        self._manifest: Manifest = canary.model.manifest
        self._hold = canary.hold
        self._vector = vector
        self._counted = counted
        self._region = region
        self._same = False
        self.inputs: Inputs = vector.inputs
        self.rows = len(next(iter(vector.inputs.values())))
        self.began = time.monotonic_ns()
        self.deadline = self.began / 1e9 + PATIENCE
        self.place = canary.place
        self.account = region.unbilled
        self.tenant = ""
        self.done = False

    def identify(self) -> str:
        """See Work."""
        return "golden"

    def render(self, answer: Answer, first: int) -> bytes:
        """See Work: compares."""
        signature = self._manifest.signature
        arrays = answer.arrays
        if not answer.alone:
            arrays = [array[first : first + self.rows] for array in arrays]
        got = dict(zip([spec.name for spec in signature.outputs], arrays, strict=True))
        self._same = not parity.compare(
            self._vector.outputs, got, self._manifest.tolerance, signature.classes
        )
        return b""

    def withhold(self, size: int) -> None:
        """See Work."""

    def succeed(self, body: bytes) -> None:
        """See Work."""
        self.done = True
        self._region.count(self._counted.place, GOLDEN_SAME if self._same else GOLDEN_DIFFERENT)

    def fail(self, error: Failure) -> None:
        """See Work."""
        self.done = True
        if not isinstance(error, TapsterError) or error.code not in {"unavailable", "deadline"}:
            self._region.count(self._counted.place, GOLDEN_DIFFERENT)
