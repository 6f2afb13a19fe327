"""What a running job sees: its inputs, a folder to work in, and a pipe to report through.

A runner is a module-level function `run(task, context) -> dict`. `task` and the answer are JSON.
What it leaves in `context.output(label)` is published after it returns. Raise TapsterError to
fail for a reason the user can act on; any other exception is reported as an internal error.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass
class JobContext:
    """A job process's view of the world. `inputs` are sealed folders by label, read-only."""

    work: Path
    inputs: dict[str, Path] = field(default_factory=dict)
    deadline: float | None = None
    report: int | None = None
    _last: tuple[float, str] = (0.0, "")

    def output(self, label: str) -> Path:
        """The (empty, new) folder whose content is published as `label`."""
        folder = self.work / "out" / label
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def scratch(self, name: str) -> Path:
        """A path in the job's own folder, removed when the job ends."""
        (self.work / "scratch").mkdir(exist_ok=True)
        return self.work / "scratch" / name

    def progress(self, fraction: float, phase: str, message: str = "", **data: Any) -> None:
        """Say how far the work is (0..1), in which phase, and anything worth showing.

        Calls closer than 50 ms to the last one of the same phase are dropped. `data` is JSON and
        replaces the job's former data (a leaderboard in the making, say).
        """
        now = time.monotonic()
        if phase == self._last[1] and fraction < 1.0 and not data and now - self._last[0] < 0.05:
            return
        self._last = (now, phase)
        if self.report is not None:
            line = {"progress": fraction, "phase": phase, "message": message, "data": data}
            os.write(self.report, json.dumps(line).encode() + b"\n")


class Runner(Protocol):
    """The function a job process calls."""

    def __call__(self, task: dict[str, Any], context: JobContext) -> dict[str, Any]:
        """Do the work; the answer is JSON."""
        ...
