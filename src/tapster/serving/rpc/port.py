"""What all connections of a worker's gRPC port share."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

from tapster.serving.rest.service import Service
from tapster.serving.rpc.methods import Method

MAX_CALLS: Final = 8192


@dataclass
class Port:
    """The connections, the tasks that read large messages, and the methods by path.

    `calls` is how many were open at the last beat.
    """

    service: Service
    methods: dict[bytes, Method]
    connections: set[Any] = field(default_factory=set)
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    calls: int = 0

    @property
    def crowded(self) -> bool:
        """Whether no more calls are taken."""
        return self.calls >= MAX_CALLS
