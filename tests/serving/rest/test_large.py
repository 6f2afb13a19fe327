"""Large JSON, cut up: what looks like many lists, shapes that cannot be; only calls are large."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tapster.contract.plan import EndpointPlan, Variant
from tapster.serving.rest import large
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, request

LONG = " " * large.LARGE


@pytest.mark.parametrize("mark", [b'"data":[', b'"data":[1,2],', b'{"data":[', b'["data":[]'])
def test_many_keys_take_no_longer_than_their_bytes(mark: bytes) -> None:
    body = mark * ((8 << 20) // len(mark))
    began = time.process_time()
    assert large.cut(body, b'"data"') is None
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("shape", [[-1, -3], [-3, -1], [0, 3], [10**200, 10**200], [10**400, 1]])
def test_shapes_that_cannot_be(plane: Plane, shape: list[Any]) -> None:
    tensor = {"name": "numeric", "shape": shape, "datatype": "FP32", "data": [1.5, 2.5, 3.5]}
    body = json.dumps({"inputs": [tensor]}) + LONG
    answer = plane.call("POST", "/v2/models/sum/infer", body.encode())
    assert answer.status == 400, answer.body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/health/live"),
        ("GET", "/v2/models/sum"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/sum/load"),
    ],
)
def test_only_calls_have_large_bodies(plane: Plane, method: str, path: str) -> None:
    answer = plane.call(method, path, b"{}".ljust(65_537))
    assert (answer.status, b"larger than 65536 bytes" in answer.body) == (413, True)
    chunk = b"10001\r\n%b\r\n0\r\n\r\n" % b"{}".ljust(65_537)
    head = request(path, method=method, more="Transfer-Encoding: chunked\r\n")
    data = head.replace(b"Content-Length: 0\r\n", b"") + chunk
    assert b" 413 " in plane.raw(data).partition(b"\r\n")[0]
    assert plane.call(method, path, b"{}".ljust(65_536)).status == 200


def test_what_is_not_just_numbers_or_rows_is_not_long(new_plane: Callable[..., Plane]) -> None:
    """Read at once it takes many times its size, and the interpreter for itself, in any wire."""
    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    plane.start()
    plane.applied()
    row = b'{"alpha":1,"beta":2,"gamma":3}'
    rows = b",".join([row] * (large.MAX_ODD // len(row)))
    junk = b",".join([b"[]"] * (large.MAX_ODD // 3 + 1))
    tensor = b'{"name":"numeric","shape":[1,3],"datatype":"FP32","data":[1,2,3]}'
    infer, wide = "/v2/models/sum/infer", b'{"x":[%b],"inputs":[%b]}' % (junk, tensor)
    predict = "/v1/models/sum:predict"
    for path, body, headers in (
        ("/v1/models/sum:regress", b'{"examples":[%b]}' % rows, {}),
        (infer, wide, {}),
        (infer, wide, {"Inference_Header_Content_Length": str(len(wide))}),
        (predict, b'{"inputs":[1,2],"instances":[%b]}' % rows, {}),
        (predict, b'{"inputs":[%b],"instances":[%b]}' % (rows, row), {}),
    ):
        answer = plane.call("POST", path, body, **headers)
        assert (answer.status, b"JSON beyond" in answer.body) == (413, True), answer
    assert plane.call("POST", predict, b'{"instances":[%b]}' % rows).status == 200


def test_a_version_that_is_asked_for_is_no_other(new_plane: Callable[..., Plane]) -> None:
    """Even when the plan changes while the body is read."""
    plane = new_plane()
    made = [packages.regressor(plane.home, float(bias)) for bias in (1, 2)]
    both = tuple(Variant("made", number, one.digest) for number, one in enumerate(made, 1))

    def serve(*variants: Variant, **labels: int) -> None:
        planned = EndpointPlan("ep", "default", "sum", variants, labels=labels)
        plane.plan(planned, packages=tuple(made))

    serve(*both, champion=1)
    plane.start()
    plane.applied()
    tensor = {"name": "numeric", "shape": [300_000, 3], "datatype": "FP32", "data": [0.5] * 900_000}
    v2 = ("/v2/models/sum/versions/1/infer", json.dumps({"inputs": [tensor]}).encode())
    rows = b'{"instances":[%b[0,0,0]]}' % (b"[0,0,0]," * 200_000)
    v1 = ("/v1/models/sum/labels/champion:predict", rows)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(plane.call, "POST", *one) for one in (v2, v1, v2, v1)]
        time.sleep(0.05)
        serve(both[1], champion=2)
        plane.applied()
    for answer in (future.result() for future in answers[::2]):
        assert answer.status == 404 or b'"model_version":"1"' in answer.body
    for answer in (future.result() for future in answers[1::2]):
        assert answer.status == 200, "the label goes where it points now"
