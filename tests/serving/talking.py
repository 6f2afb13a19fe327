"""Many requests to a plane: pipelined, and what its counters say afterwards."""

import json
from collections.abc import Sequence
from typing import Any

from tapster.serving.journal import REQUESTS
from tapster.serving.segments import found
from tapster.serving.slots import Slots
from tests.serving.conftest import Plane, request


def ask(plane: Plane, requests: Sequence[bytes], depth: int = 50) -> list[tuple[int, Any]]:
    """Status and JSON body of each answer, in order; `depth` requests are on their way at once."""
    answers = []
    with plane.connect() as line, line.makefile("rb") as file:
        for start in range(0, len(requests), depth):
            batch = requests[start : start + depth]
            line.sendall(b"".join(batch))
            for _ in batch:
                status = int(file.readline().split()[1])
                length = 0
                while (header := file.readline()) not in {b"\r\n", b""}:
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                answers.append((status, json.loads(file.read(length))))
    return answers


def infer(
    values: Sequence[float] = (1, 2, 3), name: str = "sum", more: str = "", version: int = 0
) -> bytes:
    """A request of rows of three numbers, by the Open Inference Protocol."""
    shape = [len(values) // 3, 3]
    tensor = {"name": "numeric", "shape": shape, "datatype": "FP32", "data": list(values)}
    body = json.dumps({"inputs": [tensor]}).encode()
    where = f"/versions/{version}" if version else ""
    return request(f"/v2/models/{name}{where}/infer", body, more=more)


def output(answer: tuple[int, Any], name: str = "prediction") -> list[Any]:
    """An output's values. The answer must be good."""
    status, body = answer
    assert status == 200, body
    found = next(one for one in body["outputs"] if one["name"] == name)
    return list(found["data"])


def counters(plane: Plane, endpoint: str, version: str) -> list[int]:
    """The counters of a place, by word, over all workers; all 0 if there is none."""
    slots = Slots(plane.slots)
    try:
        for number, _, _, name, label in slots.places():
            if (name, label) == (endpoint, version):
                return slots.totals(number)
        return [0] * 64
    finally:
        slots.close()


def billed(plane: Plane) -> dict[str, int]:
    """Requests on bills, by key."""
    requests: dict[str, int] = {}
    for segment in found(plane.home):
        totals = segment.totals()
        for number, label in segment.labels(range(len(totals))):
            requests[label.key] = requests.get(label.key, 0) + int(totals[number, REQUESTS])
        segment.close()
    return requests
