"""Bad input, all the way through a real server: one clear error, the right code, nothing left."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import tapster
from tapster.client import Client
from tapster.contract.errors import TapsterError
from tests.conftest import Server

GOOD = "x,y\n" + "".join(f"{n},{'a' if n % 2 else 'b'}\n" for n in range(40))


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    """A client of the shared server, with one good dataset."""
    with tapster.connect(server.url, key=server.key) as connected:
        yield connected


@pytest.fixture(scope="module")
def good(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 40 rows: a number and two classes."""
    path = tmp_path_factory.mktemp("good") / "good.csv"
    path.write_text(GOOD)
    client.data_add("good", path)
    return "good"


def _refused(error: TapsterError, server: Server, words: str, codes: str) -> None:
    """The error names the thing and shows nothing of the server."""
    said = f"{error.message} {error.hint}".lower()
    for word in words.split("|"):
        assert word.lower() in said, said
    assert error.code in codes.split("|")
    assert str(server.home) not in said
    assert "traceback" not in said


FILES: dict[str, tuple[bytes, str]] = {
    "empty.csv": (b"", "empty"),
    "binary.csv": (bytes(range(256)) * 40, "binary.csv"),
    "ragged.csv": (b"a,b\n1,2\n3,4,5,6\n7,8\n", "ragged.csv"),
    "latin.csv": (("name,n\n" + "Zürich,1\n" * 9).encode("latin-1"), "utf-8"),
    "twice.csv": (b"a,b,a\n1,2,3\n", "a"),
    "control.csv": (b'"a\x07b",c\n1,2\n', "control"),
    "long.csv": (b"n" * 300 + b",c\n1,2\n", "256"),
    "wide.csv": (b",".join(b"c%d" % n for n in range(100_000)) + b"\n", "column"),
    "broken.parquet": (b"PAR1" + b"\0" * 64 + b"PAR1", "parquet"),
    "broken.jsonl": (b'{"a": 1}\n{"a": \n', "broken.jsonl"),
    "model.pkl": (b"\x80\x04N.", "pkl"),
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_bad_file_is_refused_and_leaves_nothing(
    client: Client, server: Server, tmp_path: Path, name: str
) -> None:
    content, words = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TapsterError) as caught:
        client.data_add("bad", path)
    _refused(caught.value, server, words, "invalid|unprocessable|unsupported|too_large")
    assert "bad" not in {dataset.name for dataset in client.data_list()}
    uploads = server.home / "uploads" / "default"
    assert not uploads.exists() or list(uploads.iterdir()) == []


def test_a_missing_file_is_named(client: Client, tmp_path: Path) -> None:
    with pytest.raises(TapsterError, match=r"nowhere\.csv"):
        client.data_add("bad", tmp_path / "nowhere.csv")


def test_strange_but_legitimate_names_work_exactly(client: Client, tmp_path: Path) -> None:
    names = ["it's", 'say "hi"', "a,b", "x; DROP TABLE jobs;--", "<b>bold</b>", "🎉", "ünï", " sp "]
    quoted = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    rows = "\n".join(
        ",".join(str((n * (c + 2)) % 7) for c in range(len(names))) + f",{'yes' * (n % 2) or 'no'}"
        for n in range(60)
    )
    path = tmp_path / "names.csv"
    path.write_text(f"{quoted},label\n{rows}\n")
    version = client.data_add("names", path)
    assert [column["name"] for column in version.columns] == [*names, "label"]
    job = client.train("names", "label", "names", algorithm="hist-gradient-boosting", cv=2)
    try:
        model = client.model_of(client.wait(job))
    except TapsterError as error:
        assert "baseline" in error.message  # noqa: PT017 - labels may be noise to the model
        job = client.train("names", "label", "names", algorithm="naive", cv=2)
        model = client.model_of(client.wait(job))
    assert [column["name"] for column in model.signature["columns"]] == names
    client.deploy(f"names@{model.version}", "names")
    row = {name: float(index) for index, name in enumerate(names)}
    assert client.predict("names", [row])[0]["prediction"] in {"yes", "no"}
    with pytest.raises(TapsterError, match="DROP TABLE"):
        client.predict("names", [{k: v for k, v in row.items() if "DROP" not in k}])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "z"}, "z"),
        ({"algorithm": "logistik"}, "logistik|logistic"),
        ({"metric": "acuracy"}, "acuracy|accuracy"),
        ({"task": "clustering"}, "clustering"),
        ({"dataset": "ghost"}, "ghost"),
        ({"dataset": "good@99"}, "99"),
        ({"cv": 100, "algorithm": "logistic"}, "fold"),
        ({"cv": 1}, "cv"),
        ({"trials": -1}, "trials"),
        ({"time_limit": -5}, "time_limit"),
        ({"split": "nosuch"}, "nosuch"),
        ({"model": "../x"}, "../x"),
        ({"recipe": {"steps": [{"op": "explode"}]}}, "explode"),
        ({"tenant_id": "other"}, "tenant_id"),
    ],
)
def test_a_training_that_cannot_be_is_refused(
    client: Client, server: Server, good: str, options: dict[str, Any], words: str
) -> None:
    given = {"dataset": good, "target": "y", "model": "m", "algorithm": "naive", **options}
    with pytest.raises(TapsterError) as caught:
        client.wait(client.train(**given))
    _refused(caught.value, server, words, "invalid|unprocessable|not_found")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("x,y\n" + "1,a\n" * 30, "constant"),
        ("x,y\n" + "".join(f"{n},class{n}\n" for n in range(30)), "one row"),
        ("x,y\n" + "".join(f"{'inf' if n == 3 else n},{n * 1.5}\n" for n in range(30)), "x"),
        ("x,y\n1,a\n2,b\n3,a\n", "rows"),
        ("y\n" + "a\nb\n" * 20, "column"),
    ],
    ids=["constant", "one-row-a-class", "infinity", "few-rows", "target-only"],
)
def test_a_table_that_teaches_nothing_is_refused(
    client: Client, server: Server, tmp_path: Path, table: str, words: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(table)

    def attempt() -> None:
        data = client.data_add("useless", path)
        client.wait(client.train(f"useless@{data.version}", "y", "m", algorithm="logistic"))

    with pytest.raises(TapsterError) as caught:
        attempt()
    _refused(caught.value, server, words, "invalid|unprocessable")


def test_unknown_versions_and_aliases_are_named(client: Client) -> None:
    for call in (client.models_show, client.models_delete, client.deploy):
        for reference in ("ghost", "ghost@1", "ghost:champion"):
            with pytest.raises(TapsterError, match="ghost") as caught:
                call(reference)
            assert caught.value.code == "not_found"


@pytest.fixture(scope="module")
def served(client: Client, good: str) -> str:
    """An endpoint that takes one number."""
    model = client.model_of(client.wait(client.train(good, "y", "good", algorithm="naive")))
    client.deploy(f"good@{model.version}", "good")
    return "good"


BODIES: list[tuple[dict[str, Any] | bytes, str]] = [
    ({"inputs": []}, "numeric"),
    ({"inputs": [{"name": "z", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}, "z"),
    ({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1]}]}, "shape"),
    ({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}]}, "x"),
    ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}] * 2}, "same name"),
    (b"{", "JSON"),
    (b"", "JSON"),
]


@pytest.mark.parametrize(("body", "words"), BODIES)
def test_a_bad_inference_is_a_400_and_the_next_one_answers(
    server: Server, served: str, body: dict[str, Any] | bytes, words: str
) -> None:
    url = f"{server.rest_url}/v2/models/{served}/infer"
    headers = {"authorization": f"Bearer {server.key}"}
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = httpx.post(url, content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert words.lower() in answer.json()["error"].lower()
    fine = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}
    assert httpx.post(url, json=fine, headers=headers).status_code == 200


def _up(home: Path | str, **settings: object) -> subprocess.CompletedProcess[str]:
    """`tapster up`, which must refuse."""
    environment = {name: text for name, text in os.environ.items() if "TAPSTER" not in name}
    environment |= {f"TAPSTER_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "tapster", "up", "--home", str(home)],
        env={
            "TAPSTER_PORT": "0",
            "TAPSTER_REST_PORT": "0",
            "TAPSTER_GRPC_PORT": "0",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _up(tmp_path / "home", rest_port=port)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--rest-port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_is_held_or_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    assert server.process is not None
    held = _up(server.home)
    assert held.returncode == 1
    assert f"process {server.process.pid}" in held.stderr
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    blocked = _up(in_the_way / "home")
    assert blocked.returncode == 1
    assert "cannot be written" in blocked.stderr
    assert "Traceback" not in held.stderr + blocked.stderr


def test_no_auth_is_refused_off_loopback(tmp_path: Path) -> None:
    done = _up(tmp_path / "home", host="0.0.0.0", no_auth=True)
    assert done.returncode == 1
    assert "--no-auth is refused" in done.stderr


@pytest.mark.system
def test_a_full_disk_in_the_middle_of_an_import_leaves_nothing(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The home is a 24 MB tmpfs (mounting it needs root, so CI runs this case)."""
    home = tmp_path / "home0"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(home)], check=True)
    try:
        server = new_server()
        small, large = tmp_path / "small.csv", tmp_path / "large.csv"
        small.write_text(GOOD)
        with large.open("w") as file:
            file.write("a,b\n")
            file.writelines(f"{n},{n * 7919 % 104729}\n" for n in range(3_000_000))
        with tapster.connect(server.url, key=server.key) as client:
            client.data_add("small", small)
            with pytest.raises(TapsterError, match="disk is full") as caught:
                client.data_add("large", large)
            assert caught.value.code == "storage_full"
            assert [dataset.name for dataset in client.data_list()] == ["small"]
            assert client.data_profile("small")
            client.data_add("again", small)
        assert server.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
