"""The SDK against a real server."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

import tapster
from tapster.client.transport import read_run
from tapster.contract.control import Job
from tests.conftest import Server


@pytest.fixture
def client(server: Server) -> Iterator[tapster.Client]:
    with tapster.connect(server.url, key=server.key) as connected:
        yield connected


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame])
def test_a_frame_becomes_a_dataset(client: tapster.Client, make: type) -> None:
    name = f"frame-{make.__module__.partition('.')[0]}"
    table = {"n": [1, 2, 3], "t": ["x", None, "🍎 <b>"], "f": [0.5, None, 1.5]}
    made = client.data_add(name, make(table))
    assert (made.rows, [column["name"] for column in made.columns]) == (3, ["n", "t", "f"])
    profile = client.data_profile(name)
    assert [column["missing"] for column in profile["columns"]] == [0, 1, 1]
    assert [version.name for version in client.data_list() if version.name == name] == [name]


def test_a_folder_becomes_one_dataset(client: tapster.Client, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,t\n1,x\n")
    (tmp_path / "b.csv").write_text("n,t\n2,y\n")
    sent: list[tuple[int, int]] = []
    seen: list[Job] = []
    made = client.data_add(
        "folder",
        tmp_path,
        schema={"n": "number"},
        on_send=lambda *step: sent.append(step),
        on_progress=seen.append,
    )
    assert (made.rows, made.columns[0]["type"]) == (2, "number")
    assert sent[-1] == (16, 16)
    assert seen[-1].status == "succeeded"


def test_a_job_is_waited_for_across_a_death_of_the_control_process(
    new_server: Callable[..., Server],
) -> None:
    server = new_server()
    killed: list[int] = []

    def watch(job: Job) -> None:
        if job.status == "running" and not killed:
            (control,) = server.children("tapster.app")
            control.kill()
            killed.append(control.pid)

    table = pl.DataFrame({"x": list(range(100)), "y": [n / 2 for n in range(100)]})
    with tapster.connect(server.url, key=server.key) as client:
        client.data_add("numbers", table)
        job = client.train("numbers", "y", "numbers", algorithm="ridge")
        ended = client.wait(job, watch)
        assert (ended.status, len(killed)) == ("succeeded", 1)
        assert [version.version for version in client.models_versions("numbers")] == [1]


def test_many_rows_are_asked_for_in_several_requests(client: tapster.Client) -> None:
    numbers = [float(n % 11) for n in range(300)]
    client.data_add("doubles", pl.DataFrame({"x": numbers, "y": [2 * n for n in numbers]}))
    client.wait(client.train("doubles", "y", "doubles", algorithm="ols", task="regression"))
    client.deploy("doubles")
    rows = pl.DataFrame({"x": [n / 500 for n in range(4500)]})
    answers = client.predict("doubles", rows)
    assert len(answers) == 4500
    assert all(abs(a["prediction"] - n / 250) < 1e-3 for n, a in enumerate(answers))
    odd = [{"x": 1.0}] * 4499 + [{"x": "y"}]
    with pytest.raises(tapster.TapsterError, match="row 4499, column 'x'"):
        client.predict("doubles", odd)
    with pytest.raises(tapster.TapsterError) as caught:
        client.predict("doubles", [])
    assert caught.value.code == "invalid"


def test_one_name_is_not_taken_for_its_letters(client: tapster.Client) -> None:
    client.data_add("shared", pl.DataFrame({"x": [1.0, 2.0] * 50, "y": [2.0, 4.0] * 50}))
    client.wait(client.train("shared", "y", "shared", algorithm="ols", task="regression"))
    client.deploy("shared")
    assert client.endpoint_share("shared", "acme").shared == ["acme"]
    assert client.models_share("shared", "acme").shared == ["acme"]
    with pytest.raises(tapster.TapsterError, match="'' cannot be the name of a tenant"):
        client.endpoint_withdraw("shared", "")
    assert client.endpoint("shared").shared == ["acme"]
    logged = client.endpoint_log("shared", mask="x").logging
    assert logged is not None
    assert logged["mask"] == ["x"]
    assert client.keys_create(rights="predict", endpoints="shared").endpoints == ["shared"]


def test_a_failed_job_raises_its_own_reason(client: tapster.Client, tmp_path: Path) -> None:
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n3\n4,5,6\n")
    with pytest.raises(tapster.TapsterError) as caught:
        client.data_add("ragged", tmp_path / "ragged.csv")
    assert caught.value.code == "invalid"
    assert "ragged.csv" in caught.value.message
    with pytest.raises(tapster.TapsterError) as caught:
        client.data_show("ragged")
    assert caught.value.code == "not_found"


def test_a_wrong_key_is_told(server: Server) -> None:
    with (
        tapster.connect(server.url, key="tk_wrong") as stranger,
        pytest.raises(tapster.TapsterError) as caught,
    ):
        stranger.info()
    assert caught.value.code == "unauthenticated"


def test_info_names_the_inference_url(client: tapster.Client, server: Server) -> None:
    assert client.info()["rest_url"] == server.rest_url == client.rest_url


def test_connect_starts_a_server_and_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAPSTER_URL", raising=False)
    home = tmp_path / "home"
    with tapster.connect(home=home) as client:
        running = read_run(home)
        assert running is not None
        assert client.data_list() == []
        with tapster.connect(home=home) as second:
            assert second.address.url == client.address.url
        assert client.info()["tenant"] == "default"
    assert read_run(home) is None
    with pytest.raises(ProcessLookupError):
        os.kill(running["pid"], 0)


def test_a_server_outlives_the_thread_that_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAPSTER_URL", raising=False)
    made: list[tapster.Client] = []
    thread = threading.Thread(target=lambda: made.append(tapster.connect(home=tmp_path / "home")))
    thread.start()
    thread.join()
    with made[0] as client:
        assert client.info()["tenant"] == "default"


def test_a_server_ends_with_a_program_that_forgot_to_close(tmp_path: Path) -> None:
    home = tmp_path / "home"
    code = f"import tapster; print(tapster.connect(home={str(home)!r}).info()['tenant'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "default"), done.stderr
    assert not (home / "run.json").exists()


def test_a_home_that_cannot_be_made_is_the_servers_own_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(tapster.TapsterError) as caught:
        tapster.connect(home=tmp_path / "file")
    assert caught.value.code == "unavailable"
    assert "cannot be written" in caught.value.message
    assert "TAPSTER_HOME" in caught.value.hint
