"""Threads for work that the event loop must not wait for."""

import queue
import threading
from collections.abc import Callable
from typing import Final

IDLE_SECONDS: Final = 30.0


class Threads:
    """Threads made when all others are busy, ended when idle for long; any number may be busy.

    Who starts jobs keeps their number within bounds. A job must not raise.
    """

    def __init__(self, name: str, idle: float = IDLE_SECONDS) -> None:
        self._name = name
        self._idle = idle
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0  # threads that wait and have not been promised a job
        self.count = 0

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` in a thread, soon."""
        with self._lock:
            if self._free:
                self._free -= 1
                self._jobs.put(job)
                return
            self.count += 1
        threading.Thread(target=self._serve, args=(job,), name=self._name, daemon=True).start()

    def _serve(self, job: Callable[[], None] | None) -> None:
        while job is not None:
            job()
            job = None  # what it holds must not wait with us
            job = self._next()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            self._free += 1
        while True:
            try:
                return self._jobs.get(timeout=self._idle)
            except queue.Empty:
                with self._lock:
                    if self._free:
                        self._free -= 1
                        self.count -= 1
                        return None
            # Promised a job in this very moment, unless another thread takes it and stays free.
