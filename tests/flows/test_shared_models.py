"""A whole installation: a model that one tenant shares, behind the endpoints of another."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import tapster
from tapster.client import Client
from tapster.contract.errors import TapsterError
from tests.conftest import Server
from tests.serving.conftest import wait_for

ROWS = {"rows": [{"x": 1.0}]}


class Parties:
    """The installation's tenant, who shares a model, and who borrows it."""

    def __init__(self, server: Server, folder: Path, versions: int = 2) -> None:
        self.server = server
        self.admin = tapster.connect(server.url, key=server.key)
        self.keys: dict[str, str] = {}
        self.lender = self.tenant("lender")
        self.borrower = self.tenant("borrower")
        path = folder / "loans.csv"
        path.write_text("x,y\n" + "".join(f"{row},{row % 2 + 0.5}\n" for row in range(40)))
        self.lender.data_add("secrets-of-lender", path)
        for seed in range(1, 1 + versions):
            job = self.lender.train("secrets-of-lender", "y", "loans", algorithm="naive", seed=seed)
            self.lender.wait(job)

    def tenant(self, name: str) -> Client:
        self.admin.tenants_add(name)
        self.keys[name] = self.admin.keys_create("owner", tenant=name).key
        return tapster.connect(self.server.url, key=self.keys[name])

    def close(self) -> None:
        """Leave."""
        for client in (self.admin, self.lender, self.borrower):
            client.close()

    def connect(self) -> None:
        """Reach a server that was started again."""
        self.close()
        url = self.server.url
        self.admin = tapster.connect(url, key=self.server.key)
        self.lender = tapster.connect(url, key=self.keys["lender"])
        self.borrower = tapster.connect(url, key=self.keys["borrower"])

    def get(self, tenant: str, path: str) -> str:
        """What the control API tells a tenant."""
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        answer = httpx.get(f"{self.server.url}/api/v1/{path}", headers=headers, timeout=30)
        assert answer.status_code == 200, path
        return answer.text

    def used(self, tenant: str) -> dict[tuple[str, str], int]:
        """Good answers on a tenant's bill, by the endpoints' owners and names."""
        rows = self.admin.usage("endpoint", tenant=tenant)["rows"]
        found = {(row["owner"], row["endpoint"]): row["requests"] for row in rows}
        return {place: count for place, count in found.items() if count}

    def workers(self, digest: str) -> dict[str, float]:
        """How many models the workers have of a package, by their state."""
        headers = {"authorization": f"Bearer {self.server.key}"}
        page = httpx.get(f"{self.server.rest_url}/metrics", headers=headers, timeout=30).text
        return {
            labels["state"]: sample.value
            for family in text_string_to_metric_families(page)
            if family.name == "tapster_package_workers"
            for sample in family.samples
            if (labels := sample.labels)["package"] == digest[:16]
        }

    def asked(self, name: str, tenant: str = "borrower") -> tuple[int, str]:
        """What an endpoint answers to a request over REST: status and body."""
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        url = f"{self.server.rest_url}/v1/endpoints/{name}/predict"
        answer = httpx.post(url, json=ROWS, headers=headers, timeout=30)
        return answer.status_code, answer.text

    def over_grpc(self, name: str, tenant: str = "borrower") -> Any:
        """What it answers over gRPC. Raises grpc.RpcError."""
        from tapster.serving.rpc.messages import message

        request = message("inference.ModelInferRequest")(model_name=name)
        tensor = request.inputs.add(name="numeric", datatype="FP32", shape=[1, 1])
        tensor.contents.fp32_contents.append(1.0)
        with grpc.insecure_channel(self.server.grpc_url) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=lambda sent: sent.SerializeToString(),
                response_deserializer=message("inference.ModelInferResponse").FromString,
            )
            metadata = (("authorization", f"Bearer {self.keys[tenant]}"),)
            return call(request, metadata=metadata, timeout=30)

    def always(self, name: str, status: int) -> None:
        """Wait until every worker answers so."""

        def check() -> bool:
            return {self.asked(name)[0] for _ in range(6)} == {status}

        wait_for(check, f"{status} from {name}")


@pytest.fixture(scope="module")
def parties(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    """See Parties; nothing is shared yet."""
    found = Parties(server, tmp_path_factory.mktemp("lending"))
    yield found
    found.close()


def test_a_shared_model_answers_at_an_endpoint_of_the_one_who_borrows(parties: Parties) -> None:
    lender, borrower = parties.lender, parties.borrower
    assert parties.asked("mine")[0] == 404
    with pytest.raises(TapsterError) as nowhere:
        borrower.deploy("lender--loans@1", "mine")
    assert nowhere.value.code == "not_found"
    lender.models_alias("loans@1", "best")
    assert lender.models_share("loans", ["borrower"]).shared == ["borrower"]
    [seen] = borrower.models_list()
    assert (seen.model, seen.version, seen.owner) == ("loans", 2, "lender")
    assert seen.metrics
    assert [column["name"] for column in seen.signature["columns"]] == ["x"]
    told = "".join(
        parties.get("borrower", path)
        for path in ("models", "models/loans", "models/lender--loans@1", "models/loans/versions")
    )
    data = lender.data_show("secrets-of-lender")
    for secret in ("secrets-of-lender", data.digest, "naive", "job_"):
        assert secret not in told
    live = borrower.deploy("loans:best", "mine")
    assert (live.tenant, live.status) == ("borrower", "live")
    assert live.serving is not None
    assert live.serving["model"] == "lender--loans"
    assert [each["name"] for each in borrower.signature("mine")["columns"]] == ["x"]
    status, said = parties.asked("mine")
    assert (status, "prediction" in said) == (200, True)
    answer = parties.over_grpc("mine")
    assert (answer.model_name, answer.model_version) == ("mine", "1")
    assert parties.asked("mine", "lender")[0] == 404, "the endpoint is not its owner's"
    assert lender.endpoints() == []


def test_what_it_answers_is_counted_limited_and_loaded_once_for_who_borrows(
    parties: Parties,
) -> None:
    lender, borrower = parties.lender, parties.borrower
    lender.models_share("loans", ["borrower"])
    live = borrower.deploy("lender--loans@1", "counted")
    assert live.serving is not None
    digest = live.serving["digest"]
    lender.deploy("loans@1", "theirs")
    assert parties.asked("theirs", "lender")[0] == 200
    assert parties.workers(digest) == {"ready": 1.0}
    parties.admin.limits_set("requests=5/day", tenant="borrower", endpoint="counted")
    found = [parties.asked("counted")[0] for _ in range(8)]
    assert (found.count(200), found.count(429)) == (5, 3)
    counted = {("borrower", "counted"): 5}
    wait_for(lambda: parties.used("borrower").items() >= counted.items(), "the usage to be told")
    rows = [row for row in borrower.usage("model")["rows"] if row["model"] == "lender--loans"]
    assert {row["owner"] for row in rows} == {"borrower"}
    wait_for(lambda: parties.used("lender") == {("lender", "theirs"): 1}, "the lender's own call")
    assert lender.usage("endpoint")["earned"]["rows"] == []


def test_a_withdrawal_holds_when_it_is_answered_and_sharing_again_undoes_it(
    parties: Parties,
) -> None:
    lender, borrower = parties.lender, parties.borrower
    lender.models_share("loans", ["borrower"])
    borrower.deploy("loans@1", "halting")
    seen: list[tuple[float, int]] = []
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            asked = time.monotonic()
            seen.append((asked, parties.asked("halting")[0]))

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call) for _ in range(4)]
        wait_for(lambda: len(seen) > 40, "some answers")
        assert lender.models_withdraw("loans").shared == []
        wait_for(lambda: any(status == 503 for _, status in seen), "a refusal")
        refused_at = time.monotonic()
        wait_for(lambda: sum(at > refused_at for at, _ in seen) > 20, "more of them")
        done.set()
        for caller in callers:
            caller.result()
    assert {status for at, status in seen} == {200, 503}
    assert {status for at, status in seen if at > refused_at} == {503}
    _, said = parties.asked("halting")
    assert "lender--loans@1 is not shared with you any longer" in said
    with pytest.raises(grpc.RpcError) as unavailable:
        parties.over_grpc("halting")
    assert unavailable.value.code() is grpc.StatusCode.UNAVAILABLE
    shown = borrower.endpoint("halting")
    assert shown.status == "failed"
    assert shown.error is not None
    assert "not shared with you any longer" in shown.error["message"]
    assert borrower.models_list() == []
    lender.models_share("loans", everybody=True)
    parties.always("halting", 200)
    assert borrower.endpoint("halting").status == "live"


def test_only_the_owner_exports_changes_or_deletes_it(parties: Parties, tmp_path: Path) -> None:
    lender, borrower = parties.lender, parties.borrower
    lender.models_share("loans", ["borrower"])
    borrower.deploy("loans@2", "kept")
    for name in ("loans", "lender--loans@2"):
        for verb in (
            lambda name: borrower.models_export(name, tmp_path / "stolen.tapster"),
            borrower.models_evaluation,
            borrower.models_lineage,
            borrower.models_delete,
            lambda name: borrower.models_alias(name, "mine"),
            lambda name: borrower.models_update(name, description="mine"),
        ):
            with pytest.raises(TapsterError) as refused:
                verb(name)
            assert refused.value.code == "forbidden"
    assert not list(tmp_path.iterdir())
    with pytest.raises(TapsterError) as refused:
        lender.models_delete("loans@2")
    assert refused.value.code == "conflict"
    assert "borrower" not in str(refused.value.as_dict())
    with pytest.raises(TapsterError) as refused:
        borrower.endpoint_share("kept", ["default"])
    assert refused.value.code == "conflict"
    borrower.endpoint_delete("kept")


def test_a_clash_of_names_is_said_with_its_owner(parties: Parties, tmp_path: Path) -> None:
    """The own model is the very same package, under the same name."""
    lender, borrower = parties.lender, parties.borrower
    lender.models_share("loans", ["borrower"])
    lender.models_export("loans@2", tmp_path / "loans.tapster")
    borrower.models_import("loans", tmp_path / "loans.tapster")
    assert [(each.model, each.owner) for each in borrower.models_list()] == [
        ("loans", ""),
        ("lender--loans", "lender"),
    ]
    own = borrower.deploy("loans", "clash")
    assert own.serving is not None
    assert own.serving["model"] == "loans"
    members = {"loans@1": 0.5, "lender--loans@1": 0.5}
    mean = borrower.deploy_ensemble(members, "clash")
    assert mean.serving is not None
    assert {each["model"] for each in mean.serving["variants"]} == {"loans", "lender--loans"}
    parties.always("clash", 200)
    lender.models_withdraw("loans")
    assert parties.asked("clash")[0] == 503, "nothing answers in part"
    borrower.deploy("loans@1", "clash")
    parties.always("clash", 200)


def test_what_lies_sealed_with_its_owner_serves_others_until_the_owner_is_erased(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(master_key="5eed" * 16, workers=2)
    parties = Parties(server, tmp_path, versions=1)
    parties.lender.models_share("loans", ["borrower"])
    parties.borrower.deploy("loans@1", "mine")
    parties.always("mine", 200)
    assert not list((server.home / "blobs").glob("borrower/packages/*")), "there is one copy"
    server.stop()
    server.start()
    parties.connect()
    parties.always("mine", 200)
    with pytest.raises(TapsterError):
        parties.lender.models_delete("loans@1")
    parties.admin.tenants_erase("lender")
    parties.always("mine", 503)
    assert parties.borrower.models_list() == []
    assert parties.borrower.endpoint("mine").status == "failed"
    assert not list((server.home / "blobs").glob("lender/*/*"))
    parties.close()


def test_erasing_who_borrows_frees_the_model(parties: Parties) -> None:
    lender = parties.lender
    lender.models_withdraw("loans")
    lender.models_share("loans", ["passing"])
    passing = parties.tenant("passing")
    passing.deploy("loans@2", "mine")
    passing.close()
    with pytest.raises(TapsterError):
        lender.models_delete("loans@2")
    parties.admin.tenants_erase("passing")
    assert lender.models_show("loans").shared == []
    lender.models_delete("loans@2")
