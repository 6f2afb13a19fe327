"""What the plan wants of a worker, as snapshots and deltas have it: endpoints and packages."""

from collections.abc import Iterable

from tapster.contract.plan import EndpointPlan, Need, PackageRef, PlanDelta, ServingPlan

Name = tuple[str, str]


def name_of(plan: EndpointPlan) -> Name:
    """An endpoint's owner and name."""
    return plan.tenant, plan.name


class Wanted:
    """Endpoints by owner and name; packages by digest; whose signatures are trusted."""

    def __init__(self, plan: ServingPlan | None = None) -> None:
        plan = plan or ServingPlan(number=-1)
        self.endpoints: dict[Name, EndpointPlan] = {}
        self.packages: dict[str, PackageRef] = {each.digest: each for each in plan.packages}
        self.signers: dict[str, None] = dict.fromkeys(plan.signers)
        self._names: dict[str, Name] = {}
        # Endpoints (ids) that need each package; "" stands for the snapshot itself.
        self._needing: dict[str, set[str]] = {digest: set() for digest in self.packages}
        self._needs: dict[str, tuple[str, ...]] = {}
        self._naming: dict[str, dict[Name, None]] = {}
        for endpoint in plan.endpoints:
            self._put(endpoint)
        self._need(plan.needs)
        for owners in self._needing.values():
            if not owners:
                owners.add("")

    def naming(self, digest: str) -> list[Name]:
        """The endpoints that name a package."""
        return list(self._naming.get(digest, ()))

    def change(self, delta: PlanDelta) -> list[Name]:
        """Take a delta; the endpoints that are others now."""
        for endpoint in delta.gone_endpoints:
            self._drop(endpoint)
        for signer in delta.signers:
            self.signers[signer] = None
        for package in delta.packages:
            self.packages[package.digest] = package
            self._needing.setdefault(package.digest, set())
        for plan in delta.endpoints:
            self._drop(plan.id, keep=True)
            self._put(plan)
        self._need(delta.needs)
        for digest in [each for each, owners in self._needing.items() if not owners]:
            del self._needing[digest]
            self.packages.pop(digest, None)
        return [name_of(plan) for plan in delta.endpoints]

    def _put(self, plan: EndpointPlan) -> None:
        name = name_of(plan)
        self.endpoints[name] = plan
        self._names[plan.id] = name
        for variant in plan.variants:
            self._naming.setdefault(variant.package, {})[name] = None

    def _drop(self, endpoint: str, *, keep: bool = False) -> None:
        """Forget an endpoint; `keep` the packages that it needs."""
        name = self._names.pop(endpoint, None)
        if name is not None and self._is(name, endpoint):
            for variant in self.endpoints.pop(name).variants:
                naming = self._naming.get(variant.package, {})
                naming.pop(name, None)
                if not naming:
                    self._naming.pop(variant.package, None)
        if not keep:
            self._release(endpoint)

    def _is(self, name: Name, endpoint: str) -> bool:
        held = self.endpoints.get(name)
        return held is not None and held.id == endpoint

    def _need(self, needs: Iterable[Need]) -> None:
        for need in needs:
            self._release(need.endpoint)
            self._needs[need.endpoint] = need.packages
            for digest in need.packages:
                self._needing.setdefault(digest, set()).add(need.endpoint)

    def _release(self, endpoint: str) -> None:
        for digest in self._needs.pop(endpoint, ()):
            self._needing[digest].discard(endpoint)
