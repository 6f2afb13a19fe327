"""Callers over gRPC, each on a connection of its own, one call at a time."""

import threading
from dataclasses import dataclass, field

import grpc
import numpy as np

from tapster.serving.rpc.messages import message
from tests.serving.rpc import calling

SECONDS = 60.0


@dataclass
class RpcLoad:
    """So many callers without pause, from `with` to its end; how their calls ended.

    A call waits for a connection, as the wait-for-ready option of gRPC has it, so that only those
    that are inside a server when it dies can fail. What a server has not seen is sent again, as
    gRPC's clients do unless told otherwise.
    """

    address: str
    endpoint: str
    key: str
    callers: int = 4
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(self.callers)
        ]

    def __enter__(self) -> "RpcLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()

    def _run(self, number: int) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        values = calling.tensor("numeric", np.array([[number, 1, 1]], np.float32))
        data = calling.infer_request(self.endpoint, values).SerializeToString()
        with grpc.insecure_channel(self.address, options) as channel:
            call = channel.unary_unary(f"/{calling.INFER}")
            while not self._stopping.wait(0.005):
                try:
                    answer = call(
                        data,
                        timeout=SECONDS,
                        metadata=calling.metadata(self.key),
                        wait_for_ready=True,
                    )
                except grpc.RpcError as error:
                    self.failed.append(f"{error.code().name}: {error.details()}")
                else:
                    self._check(answer, number + 2.0)

    def _check(self, answer: bytes, expected: float) -> None:
        found = calling.outputs(message("inference.ModelInferResponse").FromString(answer))
        with self._lock:
            self.answered += 1
            if abs(found["prediction"][0] - expected) > 1e-3:
                self.wrong.append(f"{found} instead of {expected}")
