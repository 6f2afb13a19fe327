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

    @classmethod
    def of_settings(cls, memory: int = 0, instances: int = 0) -> "Limits":
        """Those of this installation; `memory` and `instances` in place of its own if not 0."""
        from tapster.core import settings

        given = settings.load()
        return cls(
            memory=memory or given.model_memory,
            start=given.model_start_timeout,
            instances=instances or given.model_instances,
            threads=given.run_threads,
        )
