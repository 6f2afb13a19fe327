"""What the hostile suites share: limits that can be reached, and what a refusal must be like."""

import time
from typing import Any

import psutil

from tests.serving.conftest import KEY, Answer, Plane

INFER = "/v2/models/sum/infer"
PREDICT = "/v1/models/sum:predict"
PLAIN = "/v1/endpoints/sum/predict"
LIMIT = 4_000_000
MIB = 1 << 20
SECRET = "tap_do-not-show-me-anywhere"
GOOD = b'{"inputs":[{"name":"numeric","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"


def unharmed(plane: Plane, process: psutil.Process) -> None:
    """The same process gives the right answer."""
    assert plane.workers[0].poll() is None
    assert process.is_running()
    answer = plane.call("POST", INFER, GOOD)
    assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [7.0])


def numeric(data: Any, shape: Any = (1, 3), **more: Any) -> dict[str, Any]:
    tensor = {"name": "numeric", "shape": shape, "datatype": "FP32", "data": data}
    return {"inputs": [tensor | more]}


def refused(answer: Answer, *statuses: int) -> Answer:
    """A refusal that clients can read and that gives nothing away."""
    assert answer.status in (statuses or (400,)), answer
    assert answer.headers["content-type"] == "application/json"
    assert "x-request-id" in answer.headers
    error = answer.json()["error"]
    text = error if isinstance(error, str) else error["message"]
    assert text
    for inside in ("/tmp", "Traceback", "site-packages", ".py", KEY, SECRET):
        assert inside not in answer.body.decode()
    return answer


def swift(plane: Plane, body: Any, path: str = INFER, **headers: str) -> Answer:
    """A call that may not take long, whatever is in it."""
    began = time.monotonic()
    answer = plane.call("POST", path, body, **headers)
    assert time.monotonic() - began < 5
    return answer


def statuses(stream: bytes) -> list[int]:
    """The status of every response in a stream."""
    return [int(part[:3]) for part in stream.split(b"HTTP/1.1 ")[1:]]
