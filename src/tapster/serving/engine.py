"""Make what is loaded equal the plan, and hand each request its model.

Packages load in threads. An endpoint switches, in one turn of the event loop, once every package
it newly names is ready; until then, and when one fails, the old ones serve on. A model that
nothing names any more is closed after its last answer.
"""

import asyncio
import logging
from collections.abc import Callable, Container, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.plan import EndpointPlan, PackageRef, PackageState, PlanDelta
from tapster.contract.snapshots import Snapshot
from tapster.core.blobs import BlobStore
from tapster.core.settings import Settings
from tapster.serving import shelf
from tapster.serving.batcher import Batcher, Means
from tapster.serving.cache import Cache
from tapster.serving.costs import Budget
from tapster.serving.directory import Directory
from tapster.serving.endpoints import Endpoint, Target
from tapster.serving.expiry import Guard
from tapster.serving.gate import Gate, Pass
from tapster.serving.loading import Loader
from tapster.serving.model import FAILED, LOADING, Loaded, Model, Opening
from tapster.serving.payloads import Recorder
from tapster.serving.places import Places
from tapster.serving.residency import Residency
from tapster.serving.slots import Region, Slots
from tapster.serving.threads import Threads
from tapster.serving.wanted import Name, Wanted, name_of

__all__ = ["Endpoint", "Engine", "Target"]

log = logging.getLogger(__name__)

SHELF: Final = "shelf"
TEND_SECONDS: Final = 1.0


class Engine:
    """The models and endpoints of one worker. Every method runs on the event loop.

    `changed` is called when a plan is in force and when a model's state changes, `stuck` when a
    model holds a thread for ever. Runtimes keep their files in `kept`, in the home unless it is
    given.
    """

    def __init__(
        self,
        slots: Slots,
        region: Region,
        gate: Gate,
        blobs: BlobStore,
        settings: Settings,
        *,
        changed: Callable[[], None],
        stuck: Callable[[], None],
        kept: Path | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._places = Places(slots, region)
        self._region = region
        self._gate = gate
        self._blobs = blobs
        self._settings = settings
        self._shelf = kept or settings.home / SHELF
        self._changed = changed
        self._stuck = stuck
        self._guard = Guard(loop, self._overdue)
        budget = Budget(loop, settings.inline_budget)
        self._means = Means(budget, region, Threads("model"), self._guard, gate.weight)
        self._cache = Cache(settings.cache_memory, region)
        # Writes payloads down; set before there is a plan.
        self.recorder: Recorder | None = None
        self._loader = Loader(loop)
        self._residency = Residency(self._loader, settings.resident_memory, changed)
        self._number = -1
        self._models: dict[str, Model] = {}
        self._directory = Directory()
        # Of the plan: what it wants, and its endpoints that are not in force yet.
        self._wanted = Wanted()
        self._pending: set[Name] = set()
        self.applied = -1
        # Called with an endpoint that has begun to serve what the plan says.
        self.arrived: Callable[[Endpoint], None] = lambda endpoint: None
        # Grows whenever what `find` answered before may no longer hold.
        self.generation = 0
        self._loop = loop
        self._tend()

    def find(self, tenant: str, name: str) -> Endpoint | None:
        """The endpoint that a tenant means by a name: its own, or one that is shared with it."""
        return self._directory.find(tenant, name)

    def instead(self, tenant: str, name: str) -> list[str]:
        """What to call those that share a name which therefore means none of them."""
        return self._directory.instead(tenant, name)

    def visible(self, holder: Pass) -> list[tuple[str, Endpoint]]:
        """The endpoints that a key is for, by the names that its holder calls them."""
        if not holder.endpoints:
            return self._directory.visible(holder.tenant)
        found = ((name, self.find(holder.tenant, name)) for name in sorted(holder.endpoints))
        return [(name, endpoint) for name, endpoint in found if endpoint is not None]

    def mine(self, holder: Pass) -> list[Endpoint]:
        """Those of them that are of the holder's own tenant, by name."""
        return [e for e in self._directory.mine(holder.tenant) if holder.names(e.plan.name)]

    def states(self) -> tuple[PackageState, ...]:
        """Every package that the plan names, and what became of it."""
        return tuple(
            PackageState(digest, model.state, model.error)
            for digest, model in sorted(self._models.items())
        )

    def versions(self, endpoint: Endpoint) -> list[tuple[str, str, str]]:
        """(version, state, error) of what an endpoint serves, and of what it is to serve."""
        found = {target.version: (target.version, *target.state) for target in endpoint.targets}
        wanted = self._wanted.endpoints.get(name_of(endpoint.plan), endpoint.plan)
        for variant in wanted.variants if wanted.kind == "split" else ():
            model, version = self._models.get(variant.package), str(variant.version)
            if model is not None and not variant.shadow:
                found.setdefault(version, (version, model.state, model.error))
        return list(found.values())

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of the plan in force."""
        return list(self._directory)

    def models(self) -> list[tuple[Endpoint, Target]]:
        """Everything that takes traffic."""
        return [(e, target) for e in self._directory for target in e.targets]

    def queued(self) -> int:
        """Requests that wait for a model."""
        return self._guard.queued

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of the models in this worker's memory, and of the answers that it keeps."""
        return self._residency.memory, self._cache.size

    async def load(self, endpoint: Endpoint) -> None:
        """Have every model of an endpoint in this worker's memory.

        Raises TapsterError(unavailable) for one that cannot be loaded again.
        """
        await self._residency.load(endpoint.models)

    def unload(self, endpoint: Endpoint, packages: Container[str]) -> None:
        """Have an endpoint's models of these packages leave this worker's memory once idle.

        The endpoint stays: the next request brings them back. A model that another tenant's
        endpoint has too, by the same package, stays as well.
        """
        for model in endpoint.models:
            digest = model.package.digest
            named = {*model.behind, *self._wanted.naming(digest)}
            if digest in packages and all(tenant == endpoint.plan.tenant for tenant, _ in named):
                self._residency.unload(model)

    def apply(self, snapshot: Snapshot) -> None:
        """Take a whole plan: keys at once, endpoints as their packages become ready.

        A package that was refused is tried again: a newer plan that still names it means that.
        """
        self._number = snapshot.plan.number
        self._gate.renew(snapshot)
        self._wanted = Wanted(snapshot.plan)
        for package in snapshot.plan.packages:
            self._prepare(package)
        for endpoint in list(self._directory):
            if name_of(endpoint.plan) not in self._wanted.endpoints:
                self._drop(name_of(endpoint.plan))
        self._pending.clear()
        self._converge(self._wanted.endpoints)
        self.generation += 1
        self._clear_up()

    def change(self, delta: PlanDelta) -> None:
        """Take what has changed since the last plan, as `apply` does."""
        self._number = delta.number
        self._gate.change(delta)
        if not (delta.endpoints or delta.gone_endpoints or delta.needs or delta.packages):
            self._reached()
            return
        before = set(self._wanted.endpoints)
        changed = self._wanted.change(delta)
        for name in before - self._wanted.endpoints.keys():
            self._pending.discard(name)
            self._drop(name)
        for package in delta.packages:
            self._prepare(package)
        self._converge(changed)
        self._clear_up()

    def cut(self, keys: frozenset[str]) -> None:
        """Let nobody in by these keys (ids)."""
        self._gate.cut(keys)

    def _prepare(self, package: PackageRef) -> None:
        known = self._models.get(package.digest)
        if known is not None:
            known.moved(package)
        if known is None or known.state == FAILED:
            self._load(package, known)

    def _clear_up(self) -> None:
        self._retire()
        digests = set(self._wanted.packages)
        self._loader.submit(partial(shelf.sweep, self._shelf, digests))

    @property
    def current(self) -> bool:
        """Whether the newest plan that it was told of is in force."""
        return self.applied == self._number >= 0

    def _load(self, package: PackageRef, known: Model | None) -> None:
        if known is not None and known.servable:
            self._residency.retry(known)
            return
        model = self._models[package.digest] = Model(package)
        self._open(model)

    def _open(self, model: Model) -> None:
        package = model.package
        asked = [self._wanted.endpoints[n].options for n in self._wanted.naming(package.digest)]
        opening = Opening(
            self._blobs,
            tuple(self._wanted.signers),
            self._shelf,
            self._settings.run_threads,
            max([options.memory for options in asked], default=0),
        )
        done = partial(self._loaded, model, package)
        self._loader.submit(partial(Loaded, package, opening), done)

    def _loaded(
        self, model: Model, package: PackageRef, loaded: Loaded, error: BaseException | None
    ) -> None:
        if error is not None and model.package != package:  # it was moved meanwhile
            self._open(model)
            return
        if error is None:
            batcher = Batcher(
                loaded.loaded,
                self._means,
                loaded.cost,
                inline=loaded.inline,
                together=loaded.together,
            )
            model.ready(loaded, batcher)
            self._residency.add(model)
        else:
            if not isinstance(error, TapsterError):
                log.error("package %s: %r", model.package.digest[:12], error)
                error = TapsterError("unprocessable", f"it cannot be loaded: {error!r:.200}")
            model.failed(error)
        self._converge(self._wanted.naming(model.package.digest))
        if self._number >= 0 and model.package.digest not in self._wanted.packages:
            self._retire()

    def _converge(self, names: Iterable[Name]) -> None:
        """Switch those of the endpoints that can be, say what changed. Whom an endpoint is shared
        with holds at once."""
        switched = False
        for name in names:
            wanted = self._wanted.endpoints[name]
            endpoint = self._directory.own(*name) or self._fresh(wanted)
            switched |= self._directory.put(endpoint, wanted.shared)
            models = [self._models.get(variant.package) for variant in wanted.variants]
            ready = [model for model in models if model is not None and model.servable]
            self._pending.discard(name)
            if len(ready) == len(models):
                switched |= self._switch(endpoint, wanted, ready)
            elif any(model is not None and model.state == LOADING for model in models):
                self._pending.add(name)
        if switched:
            self.generation += 1
            self._retire()
        self._reached()

    def _reached(self) -> None:
        if self._number >= 0 and not self._pending:
            self.applied = self._number
        self._changed()

    def _switch(self, endpoint: Endpoint, plan: EndpointPlan, models: list[Model]) -> bool:
        """Whether anything is different now."""
        before = endpoint.models
        try:
            if not endpoint.switch(plan, models):
                return False
        except TapsterError as error:
            # The control plane has compared the signatures; whatever serves now serves on.
            log.error("endpoint %s cannot be as planned: %s", plan.name, error)
            return False
        self._place(name_of(plan), before, endpoint)
        return True

    def _place(self, name: Name, before: list[Model], endpoint: Endpoint) -> None:
        """Let models know which endpoints they serve, and thus what these ask of them."""
        for model in before:
            model.behind.pop(name, None)
        for model in endpoint.models:
            model.behind[name] = endpoint.plan.options
        for model in {*before, *endpoint.models}:
            model.configure()
        self.arrived(endpoint)

    def _drop(self, name: Name) -> None:
        endpoint = self._directory.own(*name)
        if endpoint is None:
            return
        self._directory.drop(*name)
        self.generation += 1
        endpoint.leave()
        for model in endpoint.models:
            model.behind.pop(name, None)  # two members may be one package
            model.configure()

    def _fresh(self, plan: EndpointPlan) -> Endpoint:
        return Endpoint(plan, self._region, self._places, self._cache, self.recorder)

    def _retire(self) -> None:
        """Close what nobody needs: no plan names it, and no endpoint still serves it."""
        for digest, model in list(self._models.items()):
            if digest in self._wanted.packages or model.behind or model.state == LOADING:
                continue
            del self._models[digest]
            if model.servable:
                self._residency.retire(model)

    def _tend(self) -> None:
        self._places.tend()
        self._loop.call_later(TEND_SECONDS, self._tend)

    def _overdue(self, late: float) -> None:
        log.error("a model ignored its deadline for %.1f s", late)
        self._stuck()
