"""gRPC's server reflection: which services there are, and the files that describe them.

Source: `grpc/reflection/v1/reflection.proto`; `v1alpha` is the same under another name.
"""

from functools import partial
from typing import Any, Final

from tapster.serving.rpc.exchanges import Carrier, Exchange
from tapster.serving.rpc.messages import message, pool
from tapster.serving.rpc.statuses import NUMBERS

VERSIONS: Final = ("v1", "v1alpha")
SERVICES: Final = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
)


class Reflection:
    """`ServerReflectionInfo`: each message is answered at once."""

    busy = False

    def __init__(self, version: str, carrier: Carrier, exchange: Exchange) -> None:
        self._carrier = carrier
        self._exchange = exchange
        self._ended = False
        self._request = message(f"grpc.reflection.{version}.ServerReflectionRequest")
        self._response = message(f"grpc.reflection.{version}.ServerReflectionResponse")

    @property
    def full(self) -> bool:
        """See Session."""
        return self._exchange.out is not None

    def take(self, flag: int, data: bytes) -> None:
        """See Session."""
        data = self._carrier.inflated(self._exchange, flag, data)
        answer = self._answer(self._request.FromString(data))
        self._carrier.send(self._exchange, answer.SerializeToString())

    def end(self) -> None:
        """See Session."""
        self._carrier.finish(self._exchange)

    def advance(self) -> None:
        """See Session."""
        self._carrier.resume(self._exchange)

    def tick(self) -> None:
        """See Session."""

    def gone(self) -> None:
        """See Session."""

    def _answer(self, request: Any) -> Any:
        answer = self._response(valid_host=request.host, original_request=request)
        asked = request.WhichOneof("message_request")
        try:
            if asked == "list_services":
                for name in SERVICES:
                    answer.list_services_response.service.add(name=name)
            elif asked == "file_by_filename":
                _add(answer, pool().FindFileByName(request.file_by_filename))
            elif asked == "file_containing_symbol":
                _add(answer, pool().FindFileContainingSymbol(request.file_containing_symbol))
            elif asked == "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                answer.all_extension_numbers_response.base_type_name = name
            else:
                raise KeyError("there are no extensions")
        except KeyError:
            answer.error_response.error_code = NUMBERS["NOT_FOUND"]
            answer.error_response.error_message = "there is no such thing here"
        return answer


def sessions() -> dict[str, Any]:
    """What begins a call, by the version of the protocol."""
    return {version: partial(Reflection, version) for version in VERSIONS}


def _add(answer: Any, file: Any) -> None:
    """A file, after those that it needs."""
    found: dict[str, bytes] = {}
    _gather(file, found)
    answer.file_descriptor_response.file_descriptor_proto.extend(reversed(found.values()))


def _gather(file: Any, found: dict[str, bytes]) -> None:
    if file.name not in found:
        found[file.name] = file.serialized_pb
        for needed in file.dependencies:
            _gather(needed, found)
