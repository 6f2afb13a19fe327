"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tapster.cli.output import console, inert, say
from tapster.contract.control import Job
from tapster.contract.errors import TapsterError

Extra = Callable[[Job], Any]


class Lines:
    """One line a phase, or a quarter of the way, for logs and pipes."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last: tuple[str, str, int] | None = None
        self.seen: Job | None = None

    def send(self, sent: int, total: int) -> None:
        """Bytes sent; said once, at the end."""
        if sent == total and total > 10_000_000:
            say(f"{self._title}: sent {total / 1e6:.0f} MB")

    def job(self, job: Job) -> None:
        """A job's new state."""
        self.seen = job
        state = (job.status, job.phase, int(job.progress * 4))
        if state != self._last:
            self._last = state
            phase = f" {job.phase}" if job.phase not in {"", job.status} else ""
            message = f": {job.message}" if job.message else ""
            say(f"{self._title}: {job.status}{phase} {job.progress:.0%}{message}")


class Bar:
    """A live bar, with anything worth showing under it."""

    def __init__(self, title: str, live: Any, extra: Extra | None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._live, self._extra = live, extra
        self.seen: Job | None = None
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self._task = self._progress.add_task(title, total=1.0, note="")
        live.update(self._progress)

    def send(self, sent: int, total: int) -> None:
        """Bytes sent, of how many."""
        note = f"sending {sent / 1e6:.1f} of {total / 1e6:.1f} MB"
        self._progress.update(self._task, completed=sent / max(total, 1), note=note)

    def job(self, job: Job) -> None:
        """A job's new state."""
        from rich.console import Group

        self.seen = job
        note = inert(job.message or job.phase or job.status)
        self._progress.update(self._task, completed=job.progress, note=note)
        below = self._extra(job) if self._extra is not None else None
        self._live.update(self._progress if below is None else Group(self._progress, below))


@contextmanager
def shown(title: str, extra: Extra | None = None) -> Iterator[Lines | Bar]:
    """A reporter whose `send` and `job` may be handed to the client as callbacks.

    Ctrl-C leaves a job running and says how to go on with it.
    """
    reporter: Lines | Bar
    try:
        with _screen() as live:
            reporter = Lines(title) if live is None else Bar(title, live, extra)
            yield reporter
    except KeyboardInterrupt:
        if reporter.seen is not None:
            say(f"job {reporter.seen.id} goes on without us")
            say(f"watch it:  tapster jobs show {reporter.seen.id} --follow")
            say(f"stop it:   tapster jobs cancel {reporter.seen.id}")
        raise
    except TapsterError:
        if reporter.seen is not None and reporter.seen.status == "failed":
            say(f"its log:   tapster jobs logs {reporter.seen.id}")
        raise


def _screen() -> AbstractContextManager[Any]:
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.live import Live

    return Live(console=console(error=True), refresh_per_second=8, transient=True)
