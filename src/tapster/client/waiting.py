"""Following a job to its end, across broken connections and restarts of the server."""

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from tapster.client.transport import Transport, spell
from tapster.contract.control import FINISHED, Job
from tapster.contract.errors import TapsterError

T = TypeVar("T")
JobProgress = Callable[[Job], None]
RECONNECT_SECONDS: Final = 30.0
SILENCE_SECONDS: Final = 15.0


def until(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """What `look` gives once it gives something. Raises TapsterError(deadline)."""
    end = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > end:
            raise TapsterError("deadline", f"{what} goes on; ask again later")
        time.sleep(0.1)
    return found


def finish(transport: Transport, job_id: str, on_progress: JobProgress | None) -> Job:
    """The job once it has succeeded.

    Raises the job's own TapsterError if it failed, TapsterError(cancelled) if it was cancelled.
    """
    ended = watch(transport, job_id, on_progress)
    if ended.status == "failed":
        raise TapsterError.from_dict(ended.error or {"message": f"job {job_id} failed"})
    if ended.status == "cancelled":
        raise TapsterError("cancelled", f"job {job_id} was cancelled")
    return ended


def watch(transport: Transport, job_id: str, on_progress: JobProgress | None) -> Job:
    """The job once it has ended, however it ended; `on_progress` sees each change.

    Raises TapsterError(unavailable) when the server stays away for half a minute.
    """
    reachable = time.monotonic()
    while True:
        try:
            for seen in _events(transport, job_id):
                reachable = time.monotonic()
                if on_progress is not None:
                    on_progress(seen)
                if seen.status in FINISHED:
                    return seen
        except TapsterError as error:
            gone = time.monotonic() - reachable > RECONNECT_SECONDS
            if error.code not in {"unavailable", "deadline"} or gone:
                raise
        time.sleep(0.25)


def _events(transport: Transport, job_id: str) -> Iterator[Job]:
    import msgspec

    yield transport.call(Job, "GET", f"/jobs/{spell(job_id)}")
    path = f"/jobs/{spell(job_id)}/events"
    with transport.stream(path, timeout=SILENCE_SECONDS) as response:
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield msgspec.json.decode(line[5:], type=Job)
