"""Endpoints of others: what they are called, what may be done with them, on every wire."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tapster.contract.plan import EndpointPlan
from tapster.serving.directory import Directory
from tapster.serving.rpc.messages import message
from tests.serving import packages
from tests.serving.conftest import Plane, Served, endpoint, grant
from tests.serving.loads import BODY
from tests.serving.rpc.calling import INFER, OPEN, ask, call, channel, outputs, sum_request

TENSORFLOW = "tensorflow.serving"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Owners one and two share `sum` with all and with acme, and acme has a `mine` of its own;
    owner two also has `mine`, for acme, and `secret`, for nobody."""
    made = Plane(tmp_path_factory.mktemp("sharing") / "home")
    first, second = packages.regressor(made.home, 1.0), packages.regressor(made.home, 2.0)
    made.plan(
        endpoint("sum", first, tenant="one", shared=("*",)),
        endpoint("sum", second, tenant="two", shared=("acme",)),
        endpoint("mine", first, tenant="acme"),
        endpoint("mine", second, tenant="two", shared=("acme", "zeta")),
        endpoint("secret", second, tenant="two"),
        packages=(first, second),
        keys=(
            *(grant(name, "*", tenant=name) for name in ("one", "two", "acme", "zeta")),
            grant("bound", "*", tenant="zeta", endpoints=("one--sum", "two--mine", "two--secret")),
        ),
    )
    made.start()
    made.applied()
    yield Served(made, {"first": first, "second": second})
    made.stop()


@pytest.fixture
def plane(shared: Served) -> Plane:
    """The plane of `shared`."""
    return shared.plane


def answer(plane: Plane, name: str, key: str) -> float | int:
    """What a model says to one, two, three; or the status of a refusal."""
    found = plane.call("POST", f"/v2/models/{name}/infer", BODY, key=key)
    return found.json()["outputs"][0]["data"][0] if found.status == 200 else found.status


def test_a_name_means_ones_own_then_what_is_shared(plane: Plane) -> None:
    found = {
        (key, name): answer(plane, name, key)
        for key in ("one", "acme", "zeta")
        for name in ("sum", "one--sum", "two--sum", "mine", "two--mine", "secret", "two--secret")
    }
    ones = {"sum": 7.0, "one--sum": 7.0}
    wanted: dict[str, dict[str, float]] = {
        "one": ones,
        "acme": {"one--sum": 7.0, "two--sum": 8.0, "mine": 7.0, "two--mine": 8.0},
        "zeta": {**ones, "mine": 8.0, "two--mine": 8.0},
    }
    assert found == {(key, name): wanted[key].get(name, 404) for key, name in found}


def test_a_hint_names_only_what_the_caller_may_see(plane: Plane) -> None:
    several = plane.call("POST", "/v1/endpoints/sum/predict", b'{"rows":[{}]}', key="acme").json()
    assert several["error"]["hint"] == (
        "several are shared under this name: call one--sum or two--sum"
    )
    hidden, nowhere = (
        plane.call("POST", f"/v2/models/{name}/infer", BODY, key="acme").body
        for name in ("two--secret", "two--nowhere")
    )
    assert hidden == nowhere.replace(b"nowhere", b"secret")


def test_every_list_has_them_by_the_name_they_are_called(plane: Plane) -> None:
    wanted = ["mine", "one--sum", "two--mine", "two--sum"]
    models = plane.call("GET", "/v1/models", key="acme").json()
    assert models["models"] == wanted
    owners = {card["id"]: card["owned_by"] for card in models["data"]}
    assert owners == {"mine": "acme", "one--sum": "one", "two--mine": "two", "two--sum": "two"}
    index = plane.call("POST", "/v2/repository/index", key="acme").json()
    assert [line["name"] for line in index] == wanted
    found = ask(
        plane,
        f"{OPEN}/RepositoryIndex",
        "inference.RepositoryIndexResponse",
        message("inference.RepositoryIndexRequest")(),
        key="acme",
    )
    assert [line.name for line in found.models] == wanted
    zeta = plane.call("GET", "/v1/models", key="zeta").json()["models"]
    assert zeta == ["mine", "sum"]
    bound = plane.call("GET", "/v1/models", key="bound").json()["models"]
    assert bound == ["one--sum", "two--mine"]


@pytest.mark.parametrize("name", ["one--sum", "two--mine"])
def test_every_wire_answers_under_that_name(plane: Plane, name: str) -> None:
    wanted = 7.0 if name.startswith("one") else 8.0
    assert answer(plane, name, "acme") == wanted
    plain = plane.call(
        "POST", f"/v1/models/{name}:predict", {"instances": [[1.0, 2.0, 3.0]]}, key="acme"
    ).json()
    assert plain["predictions"] == [wanted]
    described = plane.call("GET", f"/v2/models/{name}", key="acme").json()
    assert described["name"] == name
    assert plane.call("GET", f"/v2/models/{name}/ready", key="acme").json()["name"] == name
    assert plane.call("GET", f"/v1/models/{name}", key="acme").json()["id"] == name
    spec = plane.call("GET", f"/v1/models/{name}/metadata", key="acme").json()["model_spec"]
    assert spec["name"] == name
    asked = sum_request()
    asked.model_name = name
    with channel(plane) as made:
        for _ in range(3):
            reply = call(plane, INFER, asked, "acme", made)
            assert reply.code is grpc.StatusCode.OK
            parsed = message("inference.ModelInferResponse").FromString(reply.answer)
            assert next(iter(outputs(parsed).values())) == [wanted]
    meta = ask(
        plane,
        f"{OPEN}/ModelMetadata",
        "inference.ModelMetadataResponse",
        message("inference.ModelMetadataRequest")(name=name),
        key="acme",
    )
    assert meta.name == name
    status = message(f"{TENSORFLOW}.GetModelStatusRequest")()
    status.model_spec.name = name
    states = ask(
        plane,
        f"{TENSORFLOW}.ModelService/GetModelStatus",
        f"{TENSORFLOW}.GetModelStatusResponse",
        status,
        key="acme",
    )
    assert [each.version for each in states.model_version_status] == [1]


def test_only_the_owner_sees_its_numbers_and_moves_its_models(plane: Plane) -> None:
    for method, path in (
        ("GET", "/v2/models/one--sum/stats"),
        ("POST", "/v2/repository/models/one--sum/load"),
        ("POST", "/v2/repository/models/one--sum/unload"),
    ):
        assert plane.call(method, path, key="acme").status == 403
    asked = message("inference.RepositoryModelUnloadRequest")(model_name="one--sum")
    refused = call(plane, f"{OPEN}/RepositoryModelUnload", asked, "acme")
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    stats = plane.call("GET", "/v2/models/stats", key="acme").json()["model_stats"]
    assert [each["name"] for each in stats] == ["mine"]
    assert plane.call("GET", "/v2/models/sum/stats", key="one").status == 200


def test_a_share_that_is_withdrawn_is_gone_on_the_next_request(shared: Served) -> None:
    """And nobody has loaded anything again for it."""
    plane, first, second = shared.plane, *shared.packages.values()
    with plane.connect() as line:
        head = b"POST /v2/models/one--sum/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer zeta"
        data = b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(BODY), BODY)
        for _ in range(3):
            line.sendall(data)
            assert b" 200 " in line.recv(10_000)
        before = plane.state()
        plane.plan(
            endpoint("sum", first, tenant="one"),
            endpoint("mine", second, tenant="acme"),
            packages=(first, second),
            keys=tuple(grant(name, "*", tenant=name) for name in ("one", "zeta")),
        )
        after = plane.applied()
        line.sendall(data)
        assert b" 404 " in line.recv(10_000)
    assert before is not None
    assert before.packages == after.packages
    assert answer(plane, "sum", "one") == 7.0


class Held:
    """An endpoint, as far as a directory looks at it."""

    def __init__(self, tenant: str, name: str) -> None:
        self.plan = EndpointPlan(f"{tenant}/{name}", tenant, name, ())


def test_the_directory_forgets_what_is_dropped() -> None:
    names: Any = Directory()
    made = {tenant: Held(tenant, "e") for tenant in ("a", "b")}
    assert names.put(made["a"], ("*",))
    assert not names.put(made["a"], ("*",))
    assert names.put(made["b"], ("c",))
    assert names.instead("c", "e") == ["a--e", "b--e"]
    assert (names.find("c", "e"), names.find("d", "e")) == (None, made["a"])
    names.drop("a", "e")
    assert (names.find("c", "e"), names.find("d", "e")) == (made["b"], None)
    assert names.find("c", "a--e") is None
    names.drop("b", "e")
    assert (names.visible("c"), list(names)) == ([], [])


def test_a_name_with_two_hyphens_is_ones_own_or_an_owners() -> None:
    names: Any = Directory()
    tricky, churn = Held("evil", "acme--churn"), Held("acme", "churn")
    names.put(tricky, ("*",))  # which the control plane does not allow
    names.put(churn, ("c",))
    assert names.find("c", "acme--churn") is churn
    assert names.find("evil", "acme--churn") is tricky
    assert names.find("d", "acme--churn") is None
    assert [name for name, _ in names.visible("d")] == []
