from collections.abc import Callable

from tests.serving import packages
from tests.serving.conftest import Plane, endpoint


def test_a_call_goes_through(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    plane.start()
    state = plane.applied()
    print(state, plane.log())
    body = {"inputs": [{"name": "numeric", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}
    got = plane.call("POST", "/v2/models/sum/infer", body)
    print(got)
    assert got.status == 200
    assert got.json()["outputs"][0]["data"] == [7.0, 16.0]
    for path in ["/v2", "/v2/health/ready", "/v2/models/sum", "/v1/models/sum", "/v1/models/sum/metadata", "/v1/models", "/metrics", "/v2/models/sum/ready"]:
        print(path, plane.call("GET", path))
    print(plane.call("POST", "/v1/endpoints/sum/predict", {"rows": [{"alpha": 1, "beta": 2, "gamma": None}]}))
    print(plane.call("POST", "/v1/models/sum:predict", {"instances": [[1,2,3]]}))
    print(plane.call("POST", "/v1/models/sum:predict", {"inputs": {"alpha":[1],"beta":[2],"gamma":[5]}}))
