"""Where job processes run. An executor starts, watches and ends them; truth stays in our rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Status:
    """A process as seen from outside: `code` is None while it runs, -N when signal N ended it.

    `memory` is the resident size, in bytes, of the process and all its children.
    """

    code: int | None
    memory: int = 0


class Executor(Protocol):
    """Starts `python -m tapster.jobs.child FOLDER` somewhere that sees FOLDER."""

    def start(self, folder: Path) -> Any:
        """Start the process for the job laid out in `folder`; returns a handle."""
        ...

    def poll(self, handle: Any) -> Status:
        """How the process is; must not block."""
        ...

    def cancel(self, handle: Any) -> None:
        """End the process and all its children, now."""
        ...
