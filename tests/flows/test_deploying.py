"""Traffic while things change: swaps, refusals, rollbacks, deaths. Not one lost or wrong answer."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import tapster
from tapster.client import Client
from tapster.contract.errors import TapsterError
from tests.conftest import Server

BODY = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}


def _train_constant(client: Client, folder: Path, value: float) -> str:
    """A model that answers `value` to everything; returns its reference."""
    path = folder / f"constant{value}.csv"
    path.write_text("x,y\n" + "".join(f"{row},{value + (row % 2) - 0.5}\n" for row in range(40)))
    data = client.data_add("constants", path)
    reference = f"constants@{data.version}"
    job = client.wait(client.train(reference, "y", "constant", algorithm="naive", seed=1))
    return f"constant@{client.model_of(job).version}"


class Traffic:
    """Callers who never rest, and what they were told: (version, value) pairs and complaints.

    `asked` has the moment of the request (monotonic) with each version.
    """

    def __init__(self, server: Server, callers: int = 3) -> None:
        self._url = f"{server.rest_url}/v2/models/constant/infer"
        self._headers = {"authorization": f"Bearer {server.key}"}
        self._stop = threading.Event()
        self.answers: list[tuple[str, float]] = []
        self.asked: list[tuple[float, str]] = []
        self.complaints: list[str] = []
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]

    def _call(self) -> None:
        with httpx.Client(headers=self._headers, timeout=30) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    answer = client.post(self._url, json=BODY)
                except httpx.HTTPError as error:
                    self.complaints.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.complaints.append(answer.text)
                    continue
                body = answer.json()
                value = next(o for o in body["outputs"] if o["name"] == "prediction")["data"][0]
                self.asked.append((began, body["model_version"]))
                self.answers.append((body["model_version"], value))

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for(self, count: int) -> None:
        """Until so many further answers have come."""
        goal = len(self.answers) + count
        end = time.monotonic() + 60
        while len(self.answers) < goal:
            assert time.monotonic() < end, self.complaints[:3]
            time.sleep(0.005)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Client, list[str]]]:
    """Two workers, and three versions of a model that answer 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("fleet")
    server = Server(folder / "home", {"TAPSTER_WORKERS": "2"}).start()
    with tapster.connect(server.url, key=server.key) as client:
        versions = [_train_constant(client, folder, value) for value in (1.0, 2.0, 3.0)]
        yield server, client, versions
    assert server.stop() == 0


def _until(condition: Callable[[], bool]) -> None:
    """Wait for what must come true soon."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


Fleet = tuple[Server, Client, list[str]]


def _expected(answers: list[tuple[str, float]]) -> bool:
    return all(value == pytest.approx(float(version), abs=0.01) for version, value in answers)


def test_a_swap_under_load_loses_and_mixes_nothing(fleet: Fleet) -> None:
    server, client, versions = fleet
    client.deploy(versions[0], "constant")
    with Traffic(server) as traffic:
        traffic.wait_for(100)
        for version in (versions[1], versions[2], versions[0], versions[1]):
            assert client.deploy(version, "constant").status == "live"
            since = time.monotonic()
            traffic.wait_for(230)
            number = version.partition("@")[2]
            assert {seen for began, seen in traffic.asked if began >= since} == {number}
        rolled = client.rollback("constant")
        assert rolled.serving is not None
        assert rolled.serving["version"] == 1
        traffic.wait_for(100)
    assert traffic.complaints == []
    assert _expected(traffic.answers)
    assert {version for version, _ in traffic.answers} == {"1", "2", "3"}


@contextmanager
def _spoiled(path: Path) -> Iterator[None]:
    """A byte in the middle of a file, flipped for a while."""
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "parity.msgpack"])
def test_an_altered_package_never_takes_traffic(fleet: Fleet, name: str) -> None:
    server, client, versions = fleet
    client.deploy(versions[0], "constant")
    digest = client.models_show(versions[2]).digest
    package = server.home / "blobs" / "default" / "packages" / digest
    with Traffic(server) as traffic:
        traffic.wait_for(50)
        with _spoiled(package / name), pytest.raises(TapsterError, match="was refused") as caught:
            client.deploy(versions[2], "constant")
        assert str(server.home) not in caught.value.message + caught.value.hint
        traffic.wait_for(50)
    assert traffic.complaints == []
    assert {version for version, _ in traffic.answers} == {"1"}
    endpoint = client.endpoint("constant")
    assert (endpoint.status, endpoint.serving and endpoint.serving["version"]) == ("live", 1)
    assert client.deploy(versions[2], "constant").status == "live"  # whole again


def test_an_endpoint_follows_its_alias(fleet: Fleet) -> None:
    _, client, versions = fleet
    client.models_alias(versions[0], "champion")
    client.deploy("constant:champion", "followed")
    client.models_alias(versions[1], "champion")

    def followed() -> bool:
        endpoint = client.endpoint("followed", wait=10)
        serving = endpoint.serving
        return endpoint.status == "live" and serving is not None and serving["version"] == 2

    _until(followed)
    assert client.predict("followed", [{"x": 1.0}])[0]["prediction"] == pytest.approx(2, abs=0.01)
    client.endpoint_delete("followed")

    def gone() -> bool:
        try:
            client.predict("followed", [{"x": 1.0}])
        except TapsterError as error:
            return error.code == "not_found"
        return False

    _until(gone)


def test_a_deleted_version_frees_its_storage_unless_it_serves(fleet: Fleet, tmp_path: Path) -> None:
    server, client, versions = fleet
    client.deploy(versions[0], "constant")
    with pytest.raises(TapsterError, match="constant") as caught:
        client.models_delete(versions[0])
    assert caught.value.code == "conflict"
    extra = _train_constant(client, tmp_path, 9.0)
    digest = client.models_show(extra).digest
    package = server.home / "blobs" / "default" / "packages" / digest
    size = sum(path.stat().st_size for path in package.iterdir() if path.is_file())
    freed = client.models_delete(extra)["freed"]
    assert freed >= size > 0
    assert not package.exists()


def test_no_prediction_notices_that_the_control_process_is_killed(fleet: Fleet) -> None:
    server, client, versions = fleet
    client.deploy(versions[0], "constant")
    with Traffic(server) as traffic:
        for _ in range(3):
            traffic.wait_for(100)
            (control,) = server.children("tapster.app")
            os.kill(control.pid, signal.SIGKILL)
            traffic.wait_for(200)
            end = time.monotonic() + 30
            while time.monotonic() < end:
                try:
                    assert client.endpoint("constant").status == "live"
                    break
                except TapsterError:
                    time.sleep(0.05)
    assert traffic.complaints == []
    assert _expected(traffic.answers)
    assert client.deploy(versions[1], "constant").status == "live"


def test_killed_workers_come_back_and_counters_go_on(fleet: Fleet) -> None:
    server, client, versions = fleet
    client.deploy(versions[0], "constant")
    before = _requests(server)
    with Traffic(server) as traffic:
        for _ in range(4):
            traffic.wait_for(100)
            workers = server.children("serving.worker")
            os.kill(workers[0].pid, signal.SIGKILL)
            end = time.monotonic() + 30
            while time.monotonic() < end:
                alive = server.children("serving.worker")
                if len(alive) == 2 and workers[0].pid not in {one.pid for one in alive}:
                    break
                time.sleep(0.05)
            traffic.wait_for(100)
    assert _expected(traffic.answers)
    # Only what was inside a killed worker may fail: at most one request a caller and kill.
    assert len(traffic.complaints) <= 3 * 4
    assert _requests(server) >= before + len(traffic.answers)


def _requests(server: Server) -> int:
    answer = httpx.get(
        f"{server.rest_url}/metrics", headers={"authorization": f"Bearer {server.key}"}
    )
    lines = [
        line
        for line in answer.text.splitlines()
        if line.startswith("tapster_requests_total{") and 'endpoint="constant"' in line
    ]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


def test_serving_goes_on_from_the_saved_plan_without_control(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The control process cannot start at all; a new worker still serves what it last knew."""
    server = new_server(workers=1)
    with tapster.connect(server.url, key=server.key) as client:
        client.deploy(_train_constant(client, tmp_path, 1.0), "constant")
    (control,) = server.children("tapster.app")
    os.kill(control.pid, signal.SIGSTOP)
    try:
        (worker,) = server.children("serving.worker")
        os.kill(worker.pid, signal.SIGKILL)
        answer = httpx.post(
            f"{server.rest_url}/v2/models/constant/infer",
            content=json.dumps(BODY),
            headers={"authorization": f"Bearer {server.key}"},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
    finally:
        os.kill(control.pid, signal.SIGCONT)
