"""A worker follows the saved plan: a snapshot is read in a thread, deltas as they are written.

Looked at every few hundredths of a second. A delta is of a few keys or endpoints; after so many of
them the event loop is left to others before the next.
"""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from tapster.contract.plan import PlanDelta
from tapster.contract.snapshots import Snapshot
from tapster.serving import planfile
from tapster.serving.datakeys import PlanKeys
from tapster.serving.planfile import Pages, Stamp

log = logging.getLogger(__name__)

# Ids of keys that no worker of this machine lets in, one a line, whatever the plan says.
CUT: Final = "cut-keys"
MOST_CUT: Final = 10_000
# Keys and endpoints of deltas that are taken in one turn of the event loop.
AT_ONCE: Final = 200
_ENDPOINT: Final = 20


class Subject(Protocol):
    """What makes a plan true."""

    def apply(self, snapshot: Snapshot) -> None:
        """Take a whole plan."""
        ...

    def change(self, delta: PlanDelta) -> None:
        """Take what has changed."""
        ...

    def cut(self, keys: frozenset[str]) -> None:
        """Let nobody in by these keys (ids)."""
        ...


class Follower:
    """See the module. `found` says that there is a plan, `reading` that it is being read."""

    def __init__(self, home: Path, subject: Subject, keys: PlanKeys) -> None:
        """`keys` is told of packages before the subject is."""
        self._loop = asyncio.get_running_loop()
        self._home = home
        self._folder = home / "run"
        self._subject = subject
        self._keys = keys
        self._pages: Pages | None = None
        self._coming: Iterator[PlanDelta] | None = None
        self._refused: tuple[Stamp, bytes] | None = None
        self._cut: Stamp | None = None
        self.found = False
        self.reading = False

    @property
    def behind(self) -> bool:
        """Whether there is more of the plan than the subject has been told."""
        return self.reading or self._coming is not None

    def look(self) -> None:
        """Take what is new."""
        self._look_at_cut()
        if self.reading or self._coming is not None:
            return
        stamp = planfile.stamp(self._folder / planfile.NAME)
        if stamp is not None and (self._pages is None or stamp != self._pages.stamp):
            self._read(stamp)
        elif self._pages is not None:
            self._take(self._pages)

    def _read(self, stamp: Stamp) -> None:
        key = planfile.read_key(self._home)
        if self._refused == (stamp, key):
            return
        self.found = self.reading = True
        done = self._loop.run_in_executor(None, _pages, self._folder, key)
        done.add_done_callback(lambda done: self._have_read(done, stamp, key))

    def _have_read(self, done: "asyncio.Future[Pages | None]", stamp: Stamp, key: bytes) -> None:
        self.reading = False
        if done.cancelled():
            return
        pages = done.result()
        if pages is None:
            self.found = self._pages is not None
            if planfile.stamp(self._folder / planfile.NAME) == stamp:
                self._refused = (stamp, key)
                log.warning("the saved plan is not sealed by this installation; ignored")
            return
        self._pages = pages
        self._keys.learn(pages.snapshot.plan.packages)
        self._subject.apply(pages.snapshot)
        self._take(pages)

    def _take(self, pages: Pages) -> None:
        if pages.grown():
            self._coming = pages.more()
            self._go_on(pages)

    def _go_on(self, pages: Pages) -> None:
        """Take deltas for one turn."""
        coming, weight = self._coming, 0
        assert coming is not None
        while weight < AT_ONCE:
            delta = next(coming, None)
            if delta is None:
                self._coming = None
                if pages.refused:
                    log.warning("the saved plan's log is not sealed by this installation; ignored")
                return
            try:
                self._keys.add(delta.packages)
                self._subject.change(delta)
            except Exception:
                # What comes after it may still be revocations.
                log.exception("a change of the plan cannot be made true")
            weight += len(delta.keys) + len(delta.gone_keys) + len(delta.tenants)
            weight += 1 + _ENDPOINT * (len(delta.endpoints) + len(delta.gone_endpoints))
        self._loop.call_soon(self._go_on, pages)

    def _look_at_cut(self) -> None:
        path = self._home / CUT
        stamp = planfile.stamp(path)
        if stamp == self._cut:
            return
        try:
            lines = path.read_text(errors="replace").split() if stamp else []
        except OSError:  # who is cut off stays so until it can be read
            return
        self._cut = stamp
        self._subject.cut(frozenset(lines[:MOST_CUT]))


def _pages(folder: Path, key: bytes) -> Pages | None:
    try:
        return Pages(folder, key)
    except ValueError:
        return None
