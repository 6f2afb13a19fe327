"""What a request may be sent to: endpoints, and the versions behind them that answer."""

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from tapster.contract.errors import TapsterError
from tapster.contract.plan import EndpointPlan, Variant
from tapster.serving import golden
from tapster.serving.cache import Cache
from tapster.serving.ensemble import Ensemble, as_one
from tapster.serving.model import COLD, FAILED, LOADING, READY, Model
from tapster.serving.payloads import Logged, Recorder
from tapster.serving.places import Hold, Places
from tapster.serving.shadow import Mirror
from tapster.serving.slots import Region
from tapster.serving.traffic import Inner, Split
from tapster.serving.work import Work

_ORDER: Final = (READY, COLD, LOADING, FAILED)


class Target:
    """What a request to an endpoint runs: one version of its model, or an ensemble.

    `submit` runs a request: the batcher's own method, or what the plan puts around it. `members`
    are those of an ensemble.
    """

    __slots__ = (
        "endpoint", "hold", "key", "members", "model", "place", "prefix", "submit", "variant",
        "version",
    )  # fmt: skip

    def __init__(self, endpoint: "Endpoint", variant: Variant, model: Model, hold: Hold) -> None:
        self.endpoint = endpoint
        self.variant = variant
        self.model = model
        self.hold = hold
        self.place = hold.place
        self.members: tuple[Inner, ...] = ()
        self.version = str(variant.version)
        # By which accounts are found.
        self.key = (endpoint.plan.id, variant.model, self.version)
        self.submit: Callable[[Work], None] = model.batcher.submit
        # The beginning of every Open Inference answer; names need no escaping.
        self.prefix = (
            f'{{"model_name":"{endpoint.plan.name}","model_version":"{self.version}",'.encode()
        )

    @property
    def state(self) -> tuple[str, str]:
        """What has become of its model, and why it cannot answer; an ensemble is as the members
        that are best off."""
        models = [member.model for member in self.members] or [self.model]
        best = min(models, key=lambda model: _ORDER.index(model.state))
        return best.state, best.error

    def expected(self, rows: int) -> float:
        """Seconds of model time that so many rows should take."""
        if not self.members:
            return self.model.batcher.cost.duration(rows)
        return sum([member.model.batcher.cost.duration(rows) for member in self.members])


class Endpoint:
    """A name that takes traffic: the plan in force for it and the models behind it."""

    def __init__(
        self,
        plan: EndpointPlan,
        region: Region,
        places: Places,
        cache: Cache,
        recorder: Recorder | None = None,
    ) -> None:
        self.plan = plan
        # Set while its payloads are written down.
        self.logged: Logged | None = None
        self._recorder = recorder
        self._cache = cache
        self._region = region
        self._places = places
        self._hold = self._held("")
        self.place = self._hold.place
        # Every model behind the endpoint, in the order of the plan's variants.
        self.models: list[Model] = []
        self.targets: list[Target] = []
        self.shadows: list[Target] = []
        # The only target that takes traffic; None when there is none, or a choice.
        self.only: Target | None = None
        self._split: Split[Target] | None = None
        self._mirrors: list[Mirror] = []

    def switch(self, plan: EndpointPlan, models: list[Model]) -> bool:
        """Send traffic to `models`, which are those of the plan's variants, all ready.

        Returns whether that is anything new. Raises TapsterError(unprocessable), and changes
        nothing, for models that cannot be put together as the plan says.
        """
        if models == self.models and replace(plan, shared=self.plan.shared) == self.plan:
            self.plan = plan
            return False
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
                    self._inner(target, f"shadow:{target.version}"), target.hold, self._region
                )
        for target in targets if plan.options.cache > 0 else ():
            target.submit = self._cached(target, plan)
        self._log(plan)
        return True

    def close(self) -> None:
        """Send nothing more to shadows."""
        for mirror in self._mirrors:
            mirror.close()

    def leave(self) -> None:
        """Send nothing more to anything: the endpoint is gone."""
        self.close()
        self.targets, self.shadows, self._mirrors = [], [], []
        self.only = self._split = None

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

    def _log(self, plan: EndpointPlan) -> None:
        """Have the payloads of what takes traffic written down, if the plan says so."""
        self.logged = Logged(plan, plan.payloads) if plan.payloads is not None else None
        if self.logged is not None and self._recorder is not None:
            for target in self.targets:
                target.submit = self._recorder.before(target.submit, self.logged)

    def _held(self, version: str) -> Hold:
        """Where a version's counters lie."""
        return self._places.hold(self.plan.tenant, self.plan.name, version)

    def _arranged(
        self, plan: EndpointPlan, models: list[Model]
    ) -> tuple[list[Target], list[Target], list[Mirror]]:
        """What answers, what is mirrored to, and the mirrors between."""
        pairs = list(zip(plan.variants, models, strict=True))
        if plan.kind == "ensemble":
            return [self._ensemble(plan, pairs)], [], []
        targets = [
            Target(self, variant, model, self._held(str(variant.version)))
            for variant, model in pairs
            if not variant.shadow
        ]
        shadows = [
            Target(self, variant, model, self._held(f"shadow:{variant.version}"))
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

    def _cached(self, target: Target, plan: EndpointPlan) -> Callable[[Work], None]:
        """A target's `submit` behind the cache, under the name of all that answers."""
        identity = target.variant.package
        if target.members:
            identity = ",".join(f"{each.package}*{each.weight!r}" for each in plan.variants)
        packed = target.model.packed
        return self._cache.before(target.submit, identity, packed, plan.options.cache)

    def _ensemble(self, plan: EndpointPlan, pairs: list[tuple[Variant, Model]]) -> Target:
        """The target that is all of the members."""
        members = []
        for variant, model in pairs:
            name = f"member:{variant.model}:{variant.version}"
            members.append(self._inner(Target(self, variant, model, self._held(name)), name))
        ensemble = Ensemble(members, self._region)
        whole = Variant(plan.name, plan.version, package="")
        target = Target(self, whole, pairs[0][1], self._held(str(plan.version)))
        target.model = as_one(target.model)
        target.submit = ensemble.submit
        target.members = ensemble.members
        return target

    def _inner(self, target: Target, place: str) -> Inner:
        variant = target.variant
        name = f"{variant.model}@{variant.version}"
        return Inner(name, target.model, variant.weight, self._held(place), target.submit)
