"""gRPC's health checking: the state of the server, under its services' names too."""

from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.serving.gate import Pass
from tapster.serving.rest.bodies import shown
from tapster.serving.rest.service import Service
from tapster.serving.rpc.exchanges import Carrier, Exchange
from tapster.serving.rpc.messages import message

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3
NAMES: Final = frozenset(
    {
        "",
        "grpc.health.v1.Health",
        "inference.GRPCInferenceService",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    }
)


def check(service: Service, holder: Pass | None, request: Any) -> Any:
    """The state of a service. Raises TapsterError(not_found)."""
    if request.service not in NAMES:
        raise TapsterError("not_found", f"there is no service {shown(request.service)}")
    return message("grpc.health.v1.HealthCheckResponse")(status=_state(service))


class Watching:
    """`Watch`: the state now, and again when it changes."""

    busy = False

    def __init__(self, carrier: Carrier, exchange: Exchange) -> None:
        self._carrier = carrier
        self._exchange = exchange
        self._asked: str | None = None
        self._told = 0

    @property
    def full(self) -> bool:
        """See Session."""
        return self._asked is not None

    def take(self, flag: int, data: bytes) -> None:
        """See Session."""
        data = self._carrier.inflated(self._exchange, flag, data)
        self._asked = message("grpc.health.v1.HealthCheckRequest").FromString(data).service
        self.tick()

    def end(self) -> None:
        """See Session. Whoever asked stays to listen."""
        if self._asked is None:
            raise TapsterError("internal", "there is no message")

    def advance(self) -> None:
        """See Session."""

    def tick(self) -> None:
        """See Session."""
        if self._asked is None or self._exchange.out is not None:
            return
        state = _state(self._carrier.service) if self._asked in NAMES else UNKNOWN
        if state != self._told:
            self._told = state
            answer = message("grpc.health.v1.HealthCheckResponse")(status=state)
            self._carrier.send(self._exchange, answer.SerializeToString())

    def gone(self) -> None:
        """See Session."""


def _state(service: Service) -> int:
    return SERVING if service.ready else NOT_SERVING
