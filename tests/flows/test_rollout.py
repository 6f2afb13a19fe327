"""Shares, canaries, shadows and ensembles of a real installation, under load."""

import json
import math
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

import tapster
from tapster.cli import main
from tapster.client import Client
from tapster.contract.control import Endpoint
from tapster.contract.errors import TapsterError
from tests.conftest import Server
from tests.faults.soak import scaled
from tests.serving import variations
from tests.serving.variations import BOUND

ROW = [1.0, 2.0, 3.0]
# On a busy machine a version is as quick as itself only by and by.
FAST = {"interval": 0.5, "min_requests": 30, "max_latency_ratio": 1000}


def body(values: list[float]) -> bytes:
    """An Open Inference request."""
    shape = [len(values) // 3, 3]
    tensor = {"name": "numeric", "shape": shape, "datatype": "FP32", "data": values}
    return json.dumps({"inputs": [tensor]}).encode()


@dataclass
class Traffic:
    """Callers of an endpoint: when they asked, and what they were told, as (version, value)."""

    server: Server
    endpoint: str
    callers: int = 4
    rate: float = 0.0  # requests a second, all callers together; 0 is as fast as they can
    values: list[float] = field(default_factory=lambda: ROW)
    seen: list[tuple[float, str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __enter__(self) -> "Traffic":
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(number,)) for number in range(self.callers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _call(self, number: int) -> None:
        url = f"{self.server.rest_url}/v2/models/{self.endpoint}/infer"
        headers = {"authorization": f"Bearer {self.server.key}"}
        pause = self.callers / self.rate if self.rate else 0.0
        due = time.monotonic() + pause * number / self.callers
        content = body(self.values)
        with httpx.Client(headers=headers, timeout=60) as client:
            while not self._stop.wait(max(due - time.monotonic(), 0) if pause else 0):
                due += pause
                asked = time.monotonic()
                try:
                    answer = client.post(url, content=content)
                except httpx.HTTPError as error:
                    self.errors.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.errors.append(answer.text)
                    continue
                told = answer.json()
                value = told["outputs"][0]["data"][0]
                self.seen.append((asked, told["model_version"], value))

    def more(self, count: int) -> None:
        """Until so many further answers or errors have come."""
        goal = len(self.seen) + len(self.errors) + count
        until(lambda: len(self.seen) + len(self.errors) >= goal, "answers")

    def versions(self, since: float = 0.0) -> Counter[str]:
        """Answers by version, to what was asked after a moment."""
        return Counter(version for at, version, _ in self.seen if at >= since)


def until(condition: Callable[[], Any], what: str, limit: float = 120.0) -> Any:
    """The first true value, within a limit that only a hang reaches."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)
    return found


def within(count: int, total: int, share: float) -> bool:
    """Whether a count is one that a share gives but once in a billion tries (6 sigma)."""
    return abs(count - total * share) <= 6 * math.sqrt(total * share * (1 - share))


def add(client: Client, folder: Path, name: str, *versions: tuple[list[Any], Any]) -> None:
    """Register a model's versions, one after another, from graphs."""
    for number, (nodes, constants) in enumerate(versions):
        path = folder / f"{name}-{number}.onnx"
        onnx.save(variations.graph(nodes, variations.REGRESSION, **constants), str(path))
        client.models_import(name, path)


@dataclass
class Fleet:
    """An installation with two workers and models to stand beside one another."""

    server: Server
    client: Client

    def cli(self, *words: str) -> int:
        """A command, as typed."""
        os.environ["TAPSTER_URL"], os.environ["TAPSTER_KEY"] = self.server.url, self.server.key
        try:
            return main(words)
        finally:
            del os.environ["TAPSTER_URL"], os.environ["TAPSTER_KEY"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Model `sum`: versions 1 to 3 add 1 to 3, version 4 is slow. Model `twin` adds 5."""
    folder = tmp_path_factory.mktemp("rollout")
    server = Server(folder / "home", {"TAPSTER_WORKERS": "2"}).start()
    with tapster.connect(server.url, key=server.key) as client:
        add(
            client,
            folder,
            "sum",
            variations.plain_nodes(1.0),
            variations.picky_nodes(2.0),
            variations.plain_nodes(3.0),
            variations.slow_nodes(4.0, layers=40),
        )
        add(client, folder, "twin", variations.plain_nodes(5.0))
        yield Fleet(server, client)
    assert server.stop() == 0


def expected(traffic: Traffic, *versions: int) -> None:
    """No errors, and every answer is the version's own."""
    assert traffic.errors == []
    wanted = {(str(number), sum(ROW) + number) for number in versions}
    assert {(version, value) for _, version, value in traffic.seen} <= wanted


def shares(endpoint: Endpoint) -> dict[int, float]:
    """Versions and their percentages."""
    assert endpoint.serving is not None
    return {each["version"]: each["weight"] for each in endpoint.serving["variants"]}


def test_shares_move_under_load_without_an_error(fleet: Fleet) -> None:
    client = fleet.client
    client.deploy("sum@1", "shared")
    with Traffic(fleet.server, "shared") as traffic:
        traffic.more(100)
        assert shares(client.deploy("sum@2", "shared", weight=30)) == {1: 70, 2: 30}
        since = time.monotonic()
        traffic.more(1500)
        split = traffic.versions(since)
        changed = client.endpoint_set("shared", weights={"sum@2": 50, "sum@3": 50})
        assert shares(changed) == {2: 50, 3: 50}
        traffic.more(300)
        assert shares(client.rollback("shared")) == {1: 70, 2: 30}
        traffic.more(300)
    expected(traffic, 1, 2, 3)
    assert within(split["2"], split.total(), 0.3)
    told = Counter(version for _, version, _ in traffic.seen)

    def counted() -> bool:
        lines = {line["version"]: line for line in client.endpoint("shared").traffic}
        return all(lines[number]["requests"] == told[str(number)] for number in (1, 2))

    until(counted, "every answer to be reported")
    line = client.endpoint("shared").traffic[0]
    assert 0 < line["p50"] <= line["p95"] <= line["p99"]
    assert line["errors"] == 0


def test_a_good_canary_is_promoted_by_itself(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.client.deploy("sum@1", "rising")
    with Traffic(fleet.server, "rising") as traffic:
        words = ["deploy", "sum@3", "--endpoint", "rising", "--canary", "20,50,100"]
        rules = ["--interval", "500ms", "--min-requests", "30", "--max-latency-ratio", "1000"]
        assert fleet.cli(*words, *rules, "--follow") == 0
        streams = capsys.readouterr()
        assert "endpoint rising serves sum@3" in streams.out
        for share in ("20%", "50%"):
            assert f"rising: canary sum@3 at {share} of 20, 50, 100, waits for" in streams.err
        assert "canary sum@3 promoted" in streams.err
        since = time.monotonic()
        traffic.more(200)
    expected(traffic, 1, 3)
    assert set(traffic.versions(since)) <= {"3"}
    endpoint = fleet.client.endpoint("rising")
    assert shares(endpoint) == {3: 100}
    assert endpoint.rollout is not None
    assert [step["weight"] for step in endpoint.rollout["history"]] == [20, 50]
    assert all(step["canary"]["requests"] >= 30 for step in endpoint.rollout["history"])
    assert all(step["canary"]["errors"] == 0 for step in endpoint.rollout["history"])


def test_a_canary_that_fails_on_some_inputs_is_rolled_back_by_itself(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.client.deploy("sum@1", "failing")
    bad = Traffic(fleet.server, "failing", callers=1, values=[BOUND, 0.0, 0.0])
    with Traffic(fleet.server, "failing", callers=3) as traffic, bad:
        words = ["deploy", "sum@2", "--endpoint", "failing", "--canary", "20,100"]
        rules = ["--interval", "60s", "--max-latency-ratio", "1000"]
        assert fleet.cli(*words, *rules, "--follow") == 1
        told = capsys.readouterr().err
        assert "error: sum@2 was rolled back at 20%: " in told
        assert "of its answers are errors" in told
        assert "hint: sum@1 serves on" in told
        since = time.monotonic()
        traffic.more(200)
    assert set(traffic.versions(since)) <= {"1"}
    expected(traffic, 1, 2)
    endpoint = fleet.client.endpoint("failing")
    assert shares(endpoint) == {1: 100}
    assert endpoint.rollout is not None
    assert endpoint.rollout["state"] == "rolled back"
    assert fleet.cli("endpoints", "show", "failing") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "state rolled back" in shown
    assert "of its answers are errors" in shown


def test_a_slow_canary_is_rolled_back_by_itself(fleet: Fleet) -> None:
    client = fleet.client
    client.deploy("sum@1", "slowing")
    with Traffic(fleet.server, "slowing", values=ROW * 20) as traffic:
        client.deploy("sum@4", "slowing", canary={"steps": [20, 100], "interval": 60})
        with pytest.raises(TapsterError, match=r"sum@4 was rolled back at 20%: its p9[59] is"):
            client.rollout("slowing")
        traffic.more(50)
    expected(traffic, 1, 4)
    assert shares(client.endpoint("slowing")) == {1: 100}


def test_a_rollout_survives_the_death_of_the_control_process(fleet: Fleet) -> None:
    client = fleet.client
    client.deploy("sum@1", "enduring")
    with Traffic(fleet.server, "enduring") as traffic:
        client.deploy("sum@3", "enduring", canary={"steps": [20, 50, 100], **FAST})
        for _ in range(2):
            (control,) = fleet.server.children("tapster.app")
            os.kill(control.pid, signal.SIGKILL)
            until(lambda: len(fleet.server.children("tapster.app")) == 1, "another process")
            traffic.more(50)
        assert shares(client.rollout("enduring")) == {3: 100}
        traffic.more(50)
    expected(traffic, 1, 3)


def test_a_rollout_is_ended_by_hand_at_once(fleet: Fleet) -> None:
    client = fleet.client
    client.deploy("sum@1", "ended")
    with Traffic(fleet.server, "ended") as traffic:
        client.deploy("sum@3", "ended", canary=[50, 100])
        for shadow in (False, True):
            with pytest.raises(TapsterError, match="is rolling sum@3 out") as caught:
                client.deploy("sum@2", "ended", shadow=shadow)
            assert caught.value.code == "conflict"
        traffic.more(100)
        assert shares(client.rollback("ended")) == {1: 100}
        since = time.monotonic()
        traffic.more(200)
    expected(traffic, 1, 3)
    assert set(traffic.versions(since)) <= {"1"}
    with pytest.raises(TapsterError, match="rolled back by hand"):
        client.rollout("ended")


def test_a_shadow_is_compared_and_answers_nobody(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    client = fleet.client
    client.deploy("sum@2", "mirrored")
    client.deploy("sum@3", "mirrored", shadow=True)
    with Traffic(fleet.server, "mirrored", rate=50) as traffic:
        traffic.more(100)
    expected(traffic, 2)

    def compared() -> bool:
        lines = client.endpoint("mirrored").traffic
        shadow = next(line for line in lines if line["role"] == "shadow")
        same, *others = (shadow[name] for name in ("same", "different", "broken", "dropped"))
        return bool(sum(others) == len(traffic.seen) and others[0] > 0 and same == 0)

    until(compared, "every copy to be reported")
    assert fleet.cli("endpoints", "show", "mirrored") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "serves sum@2; shadow sum@3" in shown
    assert "SAME DIFFERENT BROKEN DROPPED" in shown
    assert fleet.cli("endpoints", "set", "mirrored", "shadow=none") == 0
    assert client.endpoint("mirrored").traffic[-1]["role"] == "version"


def test_an_ensemble_is_served_from_the_command_line(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["deploy", "sum@1=0.25", "twin@1=0.75", "--endpoint", "both", "--ensemble"]
    assert fleet.cli(*words) == 0
    assert "endpoint both serves 0.25 x sum@1 + 0.75 x twin@1" in capsys.readouterr().out
    with Traffic(fleet.server, "both") as traffic:
        traffic.more(50)
        fleet.client.endpoint_set("both", weights={"sum@3": 0.5, "twin@1": 0.5})
        traffic.more(50)
    assert traffic.errors == []
    found = {(version, value) for _, version, value in traffic.seen}
    assert found == {("1", sum(ROW) + 4.0), ("2", sum(ROW) + 4.0)}
    refused = ["deploy", "sum@1=0.5", "twin@1=0.6", "--endpoint", "both", "--ensemble"]
    assert fleet.cli(*refused) == 1
    assert "sum to 1.1, not to 1" in capsys.readouterr().err


def test_options_take_effect_while_serving(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.client.deploy("sum@4", "opted")
    settings = ["deadline=50ms", "queue=7", "window=default"]
    assert fleet.cli("endpoints", "set", "opted", *settings, "--json") == 0
    assert json.loads(capsys.readouterr().out)["options"]["deadline"] == 0.05
    headers = {"authorization": f"Bearer {fleet.server.key}"}
    url = f"{fleet.server.rest_url}/v2/models/opted/infer"

    def too_late() -> bool:
        status = httpx.post(url, content=body(ROW * 3000), headers=headers, timeout=60).status_code
        assert status in {200, 504}
        return status == 504

    until(too_late, "the deadline to hold")
    for bad, words in (("deadline=0", "deadline must be"), ("speed=1", "no option 'speed'")):
        assert fleet.cli("endpoints", "set", "opted", bad) == 1
        assert words in capsys.readouterr().err
    assert fleet.cli("endpoints", "set", "opted", "deadline=default") == 0
    assert fleet.client.endpoint("opted").options["deadline"] == 30.0


@pytest.mark.soak
def test_shares_canaries_and_rollbacks_of_twenty_thousand_requests(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """At 100 requests a second, not one error or wrong answer, whatever changes meanwhile."""
    length = scaled(200.0, 20.0)
    server = new_server(workers=2)
    switched: list[float] = []
    with tapster.connect(server.url, key=server.key) as client:
        nodes = [variations.plain_nodes(float(bias)) for bias in (1, 2, 3)]
        add(client, tmp_path, "sum", *nodes)
        client.deploy("sum@1", "soaked")
        with Traffic(server, "soaked", callers=8, rate=110) as traffic:
            traffic.more(100)
            client.deploy("sum@2", "soaked", weight=30)
            since = time.monotonic()
            time.sleep(length / 2)
            split = traffic.versions(since)
            end = time.monotonic() + length / 2
            while time.monotonic() < end:
                rules = {**FAST, "interval": length / 40, "min_requests": 20}
                client.endpoint_set("soaked", weights={"sum@1": 100})
                client.deploy("sum@3", "soaked", canary={**rules, "steps": [20, 60, 100]})
                client.rollout("soaked")
                switched += [_timed(client), _timed(client)]
                client.deploy(
                    "sum@2", "soaked", canary={**FAST, "steps": [50, 100], "interval": 60}
                )
                traffic.more(50)
                switched.append(_timed(client))
    expected(traffic, 1, 2, 3)
    assert len(traffic.seen) >= 100 * length
    share = split["2"] / split.total()
    assert abs(share - 0.3) < 0.02 or within(split["2"], split.total(), 0.3)
    assert len(switched) >= 3
    assert statistics.median(switched) < 1.0, "a rollback takes less than a second"


def _timed(client: Client) -> float:
    began = time.monotonic()
    client.rollback("soaked")
    return time.monotonic() - began
