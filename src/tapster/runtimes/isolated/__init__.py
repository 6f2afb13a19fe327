"""A model in a process of its own, behind the interface of one in ours.

Whatever the model does (crash, hang, eat memory, print for ever), its process alone ends, and is
started again. This contains faults; it is no wall against code that means harm.
"""

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a model's processes may take.

    `memory`: bytes of private memory of one process. `start`: seconds until it must be loaded, and
    that a run without a deadline may take. `instances`: processes, each with a copy of the model.
    `largest`: bytes of the inputs, and of the outputs, of one run. `threads`: of one process.
    """

    memory: int = 2048 * MIB
    start: float = 60.0
    instances: int = 1
    largest: int = 512 * MIB
    threads: int = 1
