"""Models that come and go as callers ask, in every worker of the machine.

Whoever is asked writes the wish down; each worker carries out what is new to it and says so in its
slot, which whoever was asked waits for. A worker that has taken a dead one's place lets go of the
models that were to leave. The next request to a model brings it back, where it comes to.

Source: Triton's model repository extension, `load` and `unload`.
"""

import asyncio
import time
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.core.settings import Settings
from tapster.serving import slots as layout
from tapster.serving.endpoints import Endpoint
from tapster.serving.engine import Engine
from tapster.serving.slots import Region, Slots
from tapster.serving.wishes import Wish, Wishlist

# How long the other workers are waited for to load a model, and to have begun with its leaving.
LOADING_SECONDS: Final = 60.0
LEAVING_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.01
# A worker that has not beaten for so long is not waited for.
SILENT_SECONDS: Final = 2.0


class Repository:
    """Everything is on the event loop."""

    def __init__(self, settings: Settings, slots: Slots, region: Region, engine: Engine) -> None:
        self._slots = slots
        self._region = region
        self._engine = engine
        self._wishlist = Wishlist(settings.home / "run")
        self._obeyed: dict[str, int] = {}
        self._newest: asyncio.Task[None] | None = None
        engine.arrived = self._arrived

    def look(self) -> None:
        """Carry out what is new."""
        if not self._wishlist.news():
            return
        wishes = self._wishlist.seen
        self._obeyed = {id: n for id, n in self._obeyed.items() if id in wishes.endpoints}
        coming = []
        for endpoint in self._engine.endpoints():
            if not self._is_new(endpoint) or not endpoint.models:
                continue
            if self._obey(endpoint).loaded:
                coming.append(endpoint)
        carried_out = self._load(coming, wishes.number, self._newest)
        self._newest = asyncio.get_running_loop().create_task(carried_out)

    async def load(self, endpoint: Endpoint) -> None:
        """Have every model of an endpoint in the memory of every worker.

        Raises TapsterError(unavailable) where one cannot be loaded again, or not in time.
        """
        digests = [model.package.digest for model in endpoint.models]
        number = await self._wish(endpoint, digests, loaded=True)
        await self._engine.load(endpoint)
        if not await self._everywhere(number, LOADING_SECONDS):
            raise _unavailable("it is not in the memory of every worker yet")
        if any(self._slots.state(index, layout.UNMET) == number for index in self._alive()):
            raise _unavailable("a worker has refused it")

    async def unload(self, endpoint: Endpoint) -> None:
        """Have an endpoint's models leave the memory of every worker once they are idle there."""
        digests = [model.package.digest for model in endpoint.models]
        number = await self._wish(endpoint, digests, loaded=False)
        await self._everywhere(number, LEAVING_SECONDS)

    async def _wish(self, endpoint: Endpoint, digests: list[str], *, loaded: bool) -> int:
        known = {each.plan.id for each in self._engine.endpoints()}
        number = await asyncio.to_thread(
            self._wishlist.make, endpoint.plan.id, loaded=loaded, packages=digests, known=known
        )
        self.look()
        return number

    async def _everywhere(self, number: int, seconds: float) -> bool:
        """Wait until every worker that lives has carried a wish out; whether it has."""
        until = time.monotonic() + seconds
        while not self._carried_out(number):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    def _carried_out(self, number: int) -> bool:
        return all(self._slots.state(index, layout.WISHES) >= number for index in self._alive())

    def _alive(self) -> list[int]:
        """The workers that can be waited for."""
        slots = self._slots
        return [index for index in slots.regions() if slots.beats(index, SILENT_SECONDS)]

    async def _load(
        self, endpoints: list[Endpoint], number: int, older: asyncio.Task[None] | None
    ) -> None:
        """Load what is to come, then say so, once that is said of all that was asked before."""
        region = self._region
        refused = []
        for endpoint in endpoints:
            wish = self._obeyed.get(endpoint.plan.id, 0)
            try:
                await self._engine.load(endpoint)
            except TapsterError:
                refused.append(wish)
        if older is not None:
            await asyncio.wait([older])
        for wish in sorted(refused):
            region.set(layout.UNMET, wish)
            region.set(layout.WISHES, wish)
            await asyncio.sleep(10 * LOOK_SECONDS)  # until whoever waits for this one has seen it
        region.set(layout.WISHES, number)

    def _arrived(self, endpoint: Endpoint) -> None:
        """An endpoint serves what the plan says now."""
        if self._is_new(endpoint):
            self._obey(endpoint)

    def _is_new(self, endpoint: Endpoint) -> bool:
        wish = self._wishlist.seen.endpoints.get(endpoint.plan.id)
        return wish is not None and wish.number > self._obeyed.get(endpoint.plan.id, 0)

    def _obey(self, endpoint: Endpoint) -> Wish:
        """Have models leave, if that is the wish. Those that are to come are for the caller."""
        wish = self._wishlist.seen.endpoints[endpoint.plan.id]
        self._obeyed[endpoint.plan.id] = wish.number
        if not wish.loaded:
            self._engine.unload(endpoint, wish.packages)
        return wish


def _unavailable(problem: str) -> TapsterError:
    return TapsterError(
        "unavailable", f"the model cannot be loaded everywhere: {problem}", hint="try again"
    )
