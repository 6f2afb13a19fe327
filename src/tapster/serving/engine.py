"""Make what is loaded equal the plan, and hand each request its model.

Packages load one after another in a thread. An endpoint switches, in one turn of the event loop,
once every package it newly names is ready; until then, and when one fails, the old ones serve on.
A model that nothing names any more is closed after its last answer.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.plan import EndpointPlan, PackageRef, PackageState, ServingPlan, Variant
from tapster.core.blobs import BlobStore
from tapster.serving import golden
from tapster.serving.batcher import Batcher, Budget, Work
from tapster.serving.ensemble import Ensemble, as_one
from tapster.serving.gate import Gate, Pass
from tapster.serving.model import FAILED, LOADING, READY, Loaded, Model
from tapster.serving.shadow import Mirror
from tapster.serving.slots import Region, Slots
from tapster.serving.traffic import Inner, Split

log = logging.getLogger(__name__)

EXPIRY_SECONDS: Final = 0.1
# A run that ignored its deadline so long holds its model's thread for ever: a new worker helps.
STUCK_SECONDS: Final = 5.0


class Target:
    """What a request to an endpoint runs: one version of its model, or an ensemble.

    `submit` runs a request: the batcher's own method, or what the plan puts around it. `members`
    are those of an ensemble.
    """

    __slots__ = (
        "endpoint", "members", "model", "place", "prefix", "submit", "variant", "version",
    )  # fmt: skip

    def __init__(self, endpoint: "Endpoint", variant: Variant, model: Model, place: int) -> None:
        self.endpoint = endpoint
        self.variant = variant
        self.model = model
        self.place = place
        self.members: tuple[Inner, ...] = ()
        self.version = str(variant.version)
        self.submit: Callable[[Work], None] = model.batcher.submit
        # The beginning of every Open Inference answer; names need no escaping.
        self.prefix = (
            f'{{"model_name":"{endpoint.plan.name}","model_version":"{self.version}",'.encode()
        )


class Endpoint:
    """A name that takes traffic: the plan in force for it and the models behind it."""

    def __init__(
        self, plan: EndpointPlan, region: Region, number: Callable[[str, str, str], int]
    ) -> None:
        self.plan = plan
        self._region = region
        self._number = number
        self.place = self._place("")
        # Every model behind the endpoint, in the order of the plan's variants.
        self.models: list[Model] = []
        self.targets: list[Target] = []
        self.shadows: list[Target] = []
        # The only target that takes traffic; None when there is none, or a choice.
        self.only: Target | None = None
        self._split: Split[Target] | None = None
        self._mirrors: list[Mirror] = []

    def switch(self, plan: EndpointPlan, models: list[Model]) -> None:
        """Send traffic to `models`, which are those of the plan's variants, all ready.

        Raises TapsterError(unprocessable), and changes nothing, for models that cannot be put
        together as the plan says.
        """
        if models == self.models and plan == self.plan:
            return
        before, self.plan = self.plan, plan
        try:
            targets, shadows, mirrors = self._arranged(plan, models)
        except TapsterError:
            self.plan = before
            raise
        self.close()
        self.models, self.targets, self.shadows, self._mirrors = models, targets, shadows, mirrors
        drawn = [target for target in targets if target.variant.weight > 0]
        self.only = drawn[0] if len(drawn) == 1 else None
        weights = [target.variant.weight for target in drawn]
        versions = [target.version for target in drawn]
        self._split = Split(drawn, weights, versions, plan.id) if len(drawn) > 1 else None
        for target in drawn:
            if target.variant.canary:
                golden.ask(
                    self._inner(target, f"shadow:{target.version}"), target.place, self._region
                )

    def close(self) -> None:
        """Send nothing more to shadows."""
        for mirror in self._mirrors:
            mirror.close()

    def target(self, version: str, label: str, sticky: bytes = b"") -> Target | None:
        """The target of a version, of a label, or of one request; None if it serves no such.

        Requests with the same `sticky` bytes go to the same version while the weights stay.
        """
        if not version and not label:
            return self._split.choose(sticky) if self._split else self.only
        if label:
            number = self.plan.labels.get(label)
            version = "" if number is None else str(number)
        for target in self.targets:
            if target.version == version:
                return target
        return None

    def _place(self, version: str) -> int:
        """Where a version's counters lie."""
        return self._region.place(self._number(self.plan.tenant, self.plan.name, version))

    def _arranged(
        self, plan: EndpointPlan, models: list[Model]
    ) -> tuple[list[Target], list[Target], list[Mirror]]:
        """What answers, what is mirrored to, and the mirrors between."""
        pairs = list(zip(plan.variants, models, strict=True))
        if plan.kind == "ensemble":
            return [self._ensemble(plan, pairs)], [], []
        targets = [
            Target(self, variant, model, self._place(str(variant.version)))
            for variant, model in pairs
            if not variant.shadow
        ]
        shadows = [
            Target(self, variant, model, self._place(f"shadow:{variant.version}"))
            for variant, model in pairs
            if variant.shadow
        ]
        inner = [self._inner(shadow, f"shadow:{shadow.version}") for shadow in shadows]
        mirrors = []
        for target in targets if inner else ():
            mirror = Mirror(target.submit, target.model.manifest, inner, self._region)
            target.submit = mirror.submit
            mirrors.append(mirror)
        return targets, shadows, mirrors

    def _ensemble(self, plan: EndpointPlan, pairs: list[tuple[Variant, Model]]) -> Target:
        """The target that is all of the members."""
        members = []
        for variant, model in pairs:
            name = f"{variant.model}:{variant.version}"
            members.append(self._inner(Target(self, variant, model, self._place(name)), name))
        ensemble = Ensemble(members, self._region)
        whole = Variant(plan.name, plan.version, package="")
        target = Target(self, whole, pairs[0][1], self._place(str(plan.version)))
        target.model = as_one(target.model)
        target.submit = ensemble.submit
        target.members = ensemble.members
        return target

    def _inner(self, target: Target, place: str) -> Inner:
        variant = target.variant
        name = f"{variant.model}@{variant.version}"
        return Inner(name, target.model, variant.weight, self._place(place), target.submit)


class Engine:
    """The models and endpoints of one worker. Every method runs on the event loop."""

    def __init__(
        self,
        slots: Slots,
        region: Region,
        gate: Gate,
        blobs: BlobStore,
        *,
        inline_budget: float,
        changed: Callable[[], None],
        stuck: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots = slots
        self._region = region
        self._gate = gate
        self._blobs = blobs
        self._budget = Budget(self._loop, inline_budget)
        self._changed = changed
        self._stuck = stuck
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._plan: ServingPlan | None = None
        self._models: dict[str, Model] = {}
        self._retired: set[Model] = set()
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self.applied = -1
        # Grows whenever what `find` and `series` answered before may no longer hold.
        self.generation = 0
        self._loop.call_later(EXPIRY_SECONDS, self._expire)

    def find(self, tenant: str, name: str) -> Endpoint | None:
        """The endpoint that a tenant means by a name."""
        return self._endpoints.get((tenant, name))

    def visible(self, tenant: str) -> list[Endpoint]:
        """The endpoints of a tenant, by name."""
        return [e for (owner, _), e in sorted(self._endpoints.items()) if owner == tenant]

    def states(self) -> tuple[PackageState, ...]:
        """Every package that the plan names, and what became of it."""
        return tuple(
            PackageState(digest, model.state, model.error)
            for digest, model in sorted(self._models.items())
        )

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of the plan in force."""
        return list(self._endpoints.values())

    def models(self) -> list[tuple[Endpoint, Target]]:
        """Everything that takes traffic."""
        return [(e, target) for e in self._endpoints.values() for target in e.targets]

    def queued(self) -> int:
        """Requests that wait for a model."""
        return sum(
            len(model.batcher)
            for model in (*self._models.values(), *self._retired)
            if model.state == READY
        )

    def series(self, endpoint: Endpoint, holder: Pass) -> int:
        """Where requests of a key to an endpoint are counted."""
        place = holder.series.get(endpoint.plan.id)
        if place is None:
            place = self._region.series(self._slots.series(endpoint.plan.id, holder.key))
            holder.series[endpoint.plan.id] = place
        return place

    def apply(self, plan: ServingPlan) -> None:
        """Take a plan: keys at once, endpoints as their packages become ready.

        A package that was refused is tried again: a newer plan that still names it means that.
        """
        self._plan = plan
        self._gate.apply(plan.keys)
        for package in plan.packages:
            known = self._models.get(package.digest)
            if known is None or known.state == FAILED:
                self._load(package, plan.signers)
        self._converge()

    def settled(self) -> bool:
        """Whether a plan is in force and nothing is being loaded."""
        return self.applied >= 0 and all(m.state != LOADING for m in self._models.values())

    def _load(self, package: PackageRef, signers: tuple[str, ...]) -> None:
        model = Model(package)
        self._models[package.digest] = model
        future = self._loop.run_in_executor(self._loader, Loaded, package, self._blobs, signers)
        future.add_done_callback(lambda done: self._loaded(model, done))

    def _loaded(self, model: Model, done: "asyncio.Future[Loaded]") -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            loaded = done.result()
            model.ready(
                loaded,
                Batcher(
                    loaded.loaded,
                    self._budget,
                    self._region,
                    loaded.cost,
                    inline=loaded.inline,
                    together=loaded.together,
                ),
            )
        else:
            if not isinstance(error, TapsterError):
                log.error("package %s: %r", model.package.digest[:12], error)
                error = TapsterError("unprocessable", f"it cannot be loaded: {error!r:.200}")
            log.warning("package %s is refused: %s", model.package.digest[:12], error)
            model.failed(error)
        self._converge()

    def _converge(self) -> None:
        """Switch every endpoint that can be, unload what nobody needs, say what changed."""
        plan = self._plan
        if plan is None:
            return
        keep: dict[tuple[str, str], Endpoint] = {}
        settled = True
        for wanted in plan.endpoints:
            endpoint = self._endpoints.get((wanted.tenant, wanted.name)) or self._fresh(wanted)
            keep[wanted.tenant, wanted.name] = endpoint
            models = [self._models.get(variant.package) for variant in wanted.variants]
            ready = [model for model in models if model is not None and model.state == READY]
            if len(ready) == len(models):
                self._switch(endpoint, wanted, ready)
            elif any(model is not None and model.state == LOADING for model in models):
                settled = False
        for name, endpoint in self._endpoints.items():
            if name not in keep:
                endpoint.close()
        self._endpoints = keep
        self.generation += 1
        self._retire(plan)
        if settled and self.applied != plan.number:
            self.applied = plan.number
        self._changed()

    def _switch(self, endpoint: Endpoint, plan: EndpointPlan, models: list[Model]) -> None:
        try:
            endpoint.switch(plan, models)
        except TapsterError as error:
            # The control plane has compared the signatures; whatever serves now serves on.
            log.error("endpoint %s cannot be as planned: %s", plan.name, error)

    def _fresh(self, plan: EndpointPlan) -> Endpoint:
        return Endpoint(plan, self._region, self._slots.place)

    def _retire(self, plan: ServingPlan) -> None:
        named = {package.digest for package in plan.packages}
        serving = {model for endpoint in self._endpoints.values() for model in endpoint.models}
        for digest, model in list(self._models.items()):
            if digest in named or model in serving or model.state == LOADING:
                continue
            del self._models[digest]
            if model.state == READY:
                self._retired.add(model)
                model.batcher.close(lambda gone=model: self._retired.discard(gone))  # type: ignore[misc]

    def _expire(self) -> None:
        now = self._loop.time()
        late = max(
            (
                model.batcher.expire(now)
                for model in (*self._models.values(), *self._retired)
                if model.state == READY
            ),
            default=0.0,
        )
        if late > STUCK_SECONDS:
            log.error("a model ignored its deadline for %.1f s", late)
            self._stuck()
        self._loop.call_later(EXPIRY_SECONDS, self._expire)
