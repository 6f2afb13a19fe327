"""Clients that call an endpoint `sum` of regressors without pause, and check every answer."""

import json
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.serving.conftest import Plane, request, wait_for

BODY = b'{"inputs":[{"name":"numeric","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'
INFER = "/v2/models/sum/infer"


@dataclass
class Load:
    """Clients that call without pause, and check every answer."""

    plane: Plane
    clients: int = 8
    depth: int = 4
    seen: Counter[tuple[int, str, float]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    reconnect: bool = False

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def count(self) -> int:
        return sum(self.seen.values())

    def more(self, requests: int) -> None:
        """Wait for so many further answers."""
        target = self.count + requests
        wait_for(lambda: self.failures or self.count >= target, "answers under load")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._converse()
            except OSError as error:
                if not self.reconnect:
                    self.failures.append(repr(error))
                    return

    def _converse(self) -> None:
        with ExitStack() as stack:
            line = stack.enter_context(self.plane.connect())
            file = stack.enter_context(line.makefile("rb"))
            while not self._stop.is_set():
                line.sendall(request(INFER, BODY) * self.depth)
                for _ in range(self.depth):
                    status = int((file.readline() or _gone()).split()[1])
                    length = 0
                    while (header := file.readline() or _gone()) != b"\r\n":
                        if header.startswith(b"content-length:"):
                            length = int(header.split(b":")[1])
                    body = file.read(length)
                    answer = json.loads(body if len(body) == length else _gone())
                    if status != 200:
                        self.failures.append(f"{status} {answer}")
                        return
                    value = answer["outputs"][0]["data"][0]
                    self.seen[status, answer["model_version"], value] += 1


def _gone() -> bytes:
    raise ConnectionResetError
