"""What all connections of a worker share."""

from dataclasses import dataclass, field
from typing import Final, cast

from tapster.contract.errors import TapsterError
from tapster.core.settings import Settings
from tapster.serving.accounts import Accounts
from tapster.serving.bills import Bill
from tapster.serving.engine import Endpoint, Engine, Target
from tapster.serving.gate import Gate, Pass, denial
from tapster.serving.limits import Limiter, Runs
from tapster.serving.repository import Repository
from tapster.serving.rest import open_binary, open_inference, plain, tf_serving
from tapster.serving.rest.bodies import shown
from tapster.serving.rest.calls import Call
from tapster.serving.rest.forms import PLAIN, Form
from tapster.serving.rest.heads import Heads
from tapster.serving.rest.memory import Memory
from tapster.serving.rest.reading import Reader
from tapster.serving.rest.routes import Route, Routes
from tapster.serving.rest.seen import SeenHeads
from tapster.serving.rest.tf_examples import Classify, Regress
from tapster.serving.rest.wires import Wire
from tapster.serving.shares import Shares
from tapster.serving.slots import UNAVAILABLE, Region, Slots
from tapster.serving.tracing import Tracer

_LOOPBACK: Final = frozenset({b"127.0.0.1", b"localhost", b"[::1]"})


@dataclass
class Service:
    """A worker's parts, as the protocol and the plain routes see them."""

    settings: Settings
    slots: Slots
    region: Region
    gate: Gate
    engine: Engine
    accounts: Accounts
    heads: Heads = field(default_factory=Heads)
    routes: Routes = field(default_factory=Routes)
    seen: SeenHeads = field(default_factory=SeenHeads)
    reader: Reader = field(init=False)
    limiter: Limiter = field(init=False)
    memory: Memory = field(init=False)
    repository: Repository = field(init=False)
    shares: Shares = field(init=False)
    draining: bool = False
    tracer: Tracer | None = None

    def __post_init__(self) -> None:
        self.reader = Reader(
            self.settings.max_body, self.current, self.submit, self._account, self.gate.weight
        )
        self.limiter = self.accounts.limiter
        self.limiter.alive = self._serves
        self.limiter.standing = self.gate.standing
        self.memory = Memory(self.settings.body_memory)
        self.repository = Repository(self.settings, self.slots, self.region, self.engine)
        self.shares = Shares(self.gate.weight)

    @property
    def ready(self) -> bool:
        """Whether a plan is in force and the worker is not about to stop."""
        return self.engine.applied >= 0 and not self.draining

    def knows(self, host: bytes) -> bool:
        """Whether a Host header may be answered: without keys, only names of this machine.

        A foreign name there means a web page that makes a browser talk to us (DNS rebinding).
        """
        if not self.settings.no_auth:
            return True
        name = host.rpartition(b":")[0] if not host.endswith(b"]") and b":" in host else host
        return name.lower() in _LOOPBACK

    def endpoint(self, holder: Pass, route: Route) -> Endpoint:
        """The endpoint a route names.

        Raises TapsterError(not_found), and (forbidden) for a key that is not for it.
        """
        self.check(holder, route.name)
        endpoint = self.engine.find(holder.tenant, route.name)
        if endpoint is None:
            several = self.engine.instead(holder.tenant, route.name)
            hint = "`tapster endpoints list` shows those there are"
            if several:
                hint = f"several are shared under this name: call {' or '.join(several[:8])}"
            raise TapsterError(
                "not_found", f"there is no endpoint {shown(route.name)}", hint=hint, field="name"
            )
        return endpoint

    def check(self, holder: Pass, name: str) -> None:
        """Raise TapsterError(forbidden) unless a key is for what its holder calls so."""
        if not holder.names(name):
            raise denial(holder)

    def own(self, holder: Pass, route: Route) -> Endpoint:
        """As `endpoint`, for what only the owner may do. Raises TapsterError(forbidden)."""
        endpoint = self.endpoint(holder, route)
        if endpoint.plan.tenant != holder.tenant:
            raise denial(holder)
        return endpoint

    def target(self, endpoint: Endpoint, route: Route, sticky: bytes = b"") -> Target:
        """The model version a route names, or that one request is given.

        Raises TapsterError(not_found) for a version or label that is not served and
        TapsterError(unavailable) while nothing is.
        """
        target = endpoint.target(route.version, route.label, sticky)
        if target is not None:
            return target
        if not endpoint.targets:
            self.region.count(endpoint.place, UNAVAILABLE)
            if halted := endpoint.plan.halted:
                raise TapsterError(
                    "unavailable", halted, hint="`tapster endpoints show` says what can be done"
                )
            raise TapsterError("unavailable", "the endpoint has no model loaded", hint="try later")
        what = f"version {shown(route.version)}" if route.version else f"label {shown(route.label)}"
        raise TapsterError(
            "not_found",
            f"endpoint {shown(route.name)} does not serve {what}",
            hint=f"it serves: {', '.join(each.version for each in endpoint.targets)}",
        )

    def submit(self, call: Call) -> None:
        """Run a call that has been read, once it may."""
        self.limiter.submit(call, call.target)

    def _account(self, call: Call) -> Bill:
        assert call.holder is not None
        return self.accounts.find(call.holder, call.target)

    def _serves(self, target: Runs) -> bool:
        """Whether requests may still be sent to a target."""
        assert isinstance(target, Target)
        plan = target.endpoint.plan
        there = self.engine.find(plan.tenant, plan.name) is target.endpoint
        return there and target in target.endpoint.targets

    def current(self, target: Target, asked: tuple[str, str]) -> Target:
        """Where a call to a target goes now: to the same version, else to the version or label
        that it asked for, else to one that is drawn.

        Raises TapsterError(not_found).
        """
        plan = target.endpoint.plan
        endpoint = self.engine.find(plan.tenant, plan.name)
        if endpoint is not None and target in endpoint.targets:
            return target
        if endpoint is None:
            raise TapsterError("not_found", f"endpoint {shown(plan.name)} is gone")
        found = endpoint.target(target.version, "")
        return found or self.target(
            endpoint, Route("", name=plan.name, version=asked[0], label=asked[1])
        )


_OPEN: Final = cast(Wire, open_inference)
_BINARY: Final = cast(Wire, open_binary)
_TENSORFLOW: Final = cast(Wire, tf_serving)
_PLAIN: Final = cast(Wire, plain)
_EXAMPLES: Final[dict[str, Wire]] = {"v1.classify": Classify(), "v1.regress": Regress()}


def wire_of(route: Route, form: Form = PLAIN) -> Wire:
    """The wire that a route's calls, answers and errors are spelled in."""
    if route.kind.startswith("plain"):
        return _PLAIN
    if route.kind.startswith("v1"):
        return _EXAMPLES.get(route.kind, _TENSORFLOW)
    return _OPEN if form.header < 0 else _BINARY
