"""Which models are in memory: those used last, within a budget; the others come back on demand.

A model that leaves is closed; its requests wait in its queue, within their deadlines, while a
thread opens it again. That verifies every byte, and replays nothing: this process has done so. One
that cannot be brought back fails its requests, and is tried again after a while.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.runtimes import LoadedModel
from tapster.serving.loading import Loader
from tapster.serving.model import COLD, FAILED, READY, Model

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 5.0


class Residency:
    """The models of a worker that have been loaded once. Every method runs on the event loop.

    `memory`: bytes that those in memory take together, `limit`: that they may, 0 for any number.
    Models that are busy stay, whatever the limit. `changed` is called when a model's state does.
    """

    def __init__(self, loader: Loader, limit: int, changed: Callable[[], None]) -> None:
        self.memory = 0
        self._loop = asyncio.get_running_loop()
        self._loader = loader
        self._limit = limit
        self._changed = changed
        self._models: set[Model] = set()
        self._waking: dict[Model, list[asyncio.Future[None]]] = {}
        self._retry: dict[Model, float] = {}
        self._loop.call_later(LOOK_SECONDS, self._look)

    def add(self, model: Model) -> None:
        """A model that has just been loaded for the first time."""
        self._models.add(model)
        self.memory += model.loaded.memory
        model.batcher.wake = partial(self.wake, model)
        self._fit(model)

    def retire(self, model: Model) -> None:
        """A model that nothing needs any more: closed after its last answer."""
        model.batcher.leave(partial(self._gone, model))

    def wake(self, model: Model) -> None:
        """Have a model brought back."""
        if model in self._waking:
            return
        if self._retry.get(model, 0.0) > time.monotonic():
            model.batcher.refuse(_unavailable(model.error))
            return
        self._waking[model] = []
        self._loader.submit(model.loaded.reload, partial(self._woken, model), urgent=True)

    def retry(self, model: Model) -> None:
        """Have a model brought back, however recently that has failed, which says no more now."""
        self._retry.pop(model, None)
        if model.state == FAILED:
            model.state, model.error = COLD, ""
        self.wake(model)

    async def load(self, models: Sequence[Model]) -> None:
        """Wait until all of these are in memory. Raises TapsterError(unavailable)."""
        waiting = []
        for model in models:
            if model.state == READY:
                if model.behind:  # else it was retired meanwhile, and goes for good
                    model.batcher.stay()
            else:
                self.retry(model)
                waiting.append(self._loop.create_future())
                self._waking[model].append(waiting[-1])
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if outcome is not None:
                raise outcome

    def unload(self, model: Model) -> None:
        """Have a model leave the memory once it is idle; the next request brings it back."""
        if model.state == READY:
            model.batcher.leave(partial(self._left, model))

    def _woken(self, model: Model, loaded: LoadedModel, error: BaseException | None) -> None:
        waiting = self._waking.pop(model)
        if model not in self._models:  # it was retired meanwhile
            if error is None:
                self._loader.submit(loaded.close)
        elif error is None:
            model.state, model.error = READY, ""
            self.memory += model.loaded.memory
            model.batcher.resume(loaded)
            self._fit(model)
        else:
            log.error("package %s cannot be loaded again: %r", model.package.digest[:12], error)
            problem = error.message if isinstance(error, TapsterError) else "see the server's log"
            model.state, model.error = FAILED, problem
            self._retry[model] = time.monotonic() + RETRY_SECONDS
            model.batcher.refuse(_unavailable(problem))
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(_unavailable(model.error))
        self._changed()

    def _left(self, model: Model, loaded: LoadedModel | None) -> None:
        if loaded is not None:
            model.state = COLD
            self.memory -= model.loaded.memory
            self._loader.submit(loaded.close)
            self._changed()

    def _gone(self, model: Model, loaded: LoadedModel | None) -> None:
        self._models.discard(model)
        self._retry.pop(model, None)
        if loaded is not None:
            self.memory -= model.loaded.memory
            self._loader.submit(loaded.close)

    def _fit(self, newest: Model) -> None:
        """Have the least recently used leave until the rest fit."""
        if not self._limit:
            return
        over = self.memory - self._limit
        if over <= 0:
            return
        idle = [m for m in self._models if m.state == READY and not m.batcher.busy]
        for model in sorted(idle, key=lambda each: each.batcher.used):
            if over <= 0:
                break
            if model is not newest:
                over -= model.loaded.memory
                self.unload(model)

    def _look(self) -> None:
        """Every second: who has been idle for long leaves, and who was busy when it should."""
        now = time.monotonic_ns()
        newest: Model | None = None
        for model in list(self._models):
            if model.state != READY or model.batcher.busy:
                continue
            if 0 < model.idle < (now - model.batcher.used) / 1e9:
                self.unload(model)
            elif newest is None or model.batcher.used > newest.batcher.used:
                newest = model
        if newest is not None:
            self._fit(newest)
        self._loop.call_later(LOOK_SECONDS, self._look)


def _unavailable(problem: str) -> TapsterError:
    return TapsterError(
        "unavailable",
        f"the model had left the memory and cannot be loaded again: {problem}",
        hint="try again in a few seconds",
        retry_after=RETRY_SECONDS,
    )
