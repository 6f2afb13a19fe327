"""A deployed endpoint that answers nobody for now: what every wire says, and how it comes back."""

import http.client
from collections.abc import Callable

import msgspec
import pytest

from tapster.contract.plan import EndpointPlan, PackageRef
from tapster.serving.rpc.messages import message
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, wait_for
from tests.serving.loads import BODY
from tests.serving.rpc.calling import (
    INFER,
    OPEN,
    STREAM,
    ask,
    channel,
    metadata,
    refused,
    sum_request,
)

REASON = "endpoint sum answers nobody: one--m@1 is not shared with you any longer"


@pytest.fixture
def halting(new_plane: Callable[..., Plane]) -> tuple[Plane, EndpointPlan, PackageRef]:
    """Endpoint `sum` is served."""
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    serving = endpoint("sum", package, labels={"best": 1})
    plane.plan(serving, packages=(package,))
    plane.start()
    plane.applied()
    return plane, serving, package


def known(plane: Plane) -> int:
    """How many packages the worker has."""
    state = plane.state()
    assert state is not None
    return len(state.packages)


def halt(plane: Plane, serving: EndpointPlan) -> None:
    plane.plan(msgspec.structs.replace(serving, variants=(), labels={}, halted=REASON))
    plane.applied()


def test_it_says_why_on_every_wire_and_answers_again(
    halting: tuple[Plane, EndpointPlan, PackageRef],
) -> None:
    plane, serving, package = halting
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with channel(plane) as made:
        request = sum_request()
        stream = made.stream_stream(f"/{STREAM}")
        line = http.client.HTTPConnection("127.0.0.1", plane.port, timeout=30)

        def over_rest() -> tuple[int, bytes]:
            """Over a connection that has learnt where this goes."""
            line.request("POST", "/v2/models/sum/infer", BODY, headers)
            answer = line.getresponse()
            return answer.status, answer.read()

        def over_stream() -> str:
            [answer] = stream(iter([request.SerializeToString()]), metadata=metadata(KEY))
            found: str = (
                message("inference.ModelStreamInferResponse").FromString(answer).error_message
            )
            return found

        for _ in range(3):
            assert over_rest()[0] == 200
            ask(plane, INFER, "inference.ModelInferResponse", request, made=made)
        assert over_stream() == ""
        halt(plane, serving)
        status, said = over_rest()
        assert (status, REASON in said.decode()) == (503, True)
        for method, path, given in (
            ("POST", "/v1/endpoints/sum/predict", {"rows": [{"alpha": 1, "beta": 2, "gamma": 3}]}),
            ("POST", "/v1/models/sum:predict", {"instances": [[1, 2, 3]]}),
            ("POST", "/v2/models/sum/versions/1/infer", BODY),
            ("GET", "/v2/models/sum", None),
            ("GET", "/v2/models/sum/ready", None),
        ):
            answer = plane.call(method, path, given)
            assert (answer.status, REASON in answer.body.decode()) == (503, True), path
        assert plane.call("GET", "/v2/health/ready").status == 200
        code, told = refused(plane, INFER, request, made=made)
        assert (code, told.startswith(REASON)) == ("UNAVAILABLE", True)
        assert over_stream().startswith(REASON)
        name = message("inference.ModelReadyRequest")(name="sum")
        ready = "inference.ModelReadyResponse"
        assert not ask(plane, f"{OPEN}/ModelReady", ready, name).ready
        plane.plan(serving, packages=(package,))
        plane.applied()
        assert over_rest()[0] == 200
        assert ask(plane, f"{OPEN}/ModelReady", ready, name).ready
        assert over_stream() == ""
        line.close()


def test_what_is_halted_is_not_kept_in_memory(
    halting: tuple[Plane, EndpointPlan, PackageRef],
) -> None:
    plane, serving, package = halting
    assert known(plane) == 1
    halt(plane, serving)
    wait_for(lambda: known(plane) == 0, "the model to be gone")
    other = endpoint("other", package)
    plane.plan(
        msgspec.structs.replace(serving, variants=(), labels={}, halted=REASON),
        other,
        packages=(package,),
    )
    plane.applied()
    assert plane.call("POST", "/v2/models/other/infer", BODY).status == 200
    assert plane.call("POST", "/v2/models/sum/infer", BODY).status == 503
