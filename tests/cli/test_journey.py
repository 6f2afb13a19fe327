"""The whole command line against a real server: each answer one JSON document, each error one."""

import csv
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tapster.cli import main
from tests.conftest import Server

Call = Callable[..., tuple[int, Any]]
COLUMNS = ("length", "width", "colour", "ripe", "picked", "kind")


def _fruit(path: Path, rows: int = 240) -> Path:
    """A table of mixed columns with missing values; `kind` follows from length and colour."""
    draw = random.Random(1)
    lines = [",".join(COLUMNS)]
    for number in range(rows):
        apple = number % 2 == 0
        length = draw.gauss(7 if apple else 16, 1)
        colour = draw.choice(["red", "green"] if apple else ["yellow", "green"])
        cells = [f"{length:.3f}", f"{draw.gauss(6, 1):.3f}", colour]
        cells += [draw.choice(["true", "false"]), f"2024-0{draw.randint(1, 9)}-15"]
        cells = [cell if draw.random() > 0.05 else "" for cell in cells]
        lines.append(",".join([*cells, "apple" if apple else "banana"]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _fruit(tmp_path_factory.mktemp("fruit") / "fruit.csv")


@pytest.fixture
def call(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Run a command with --json: its exit code and its one document."""
    monkeypatch.setenv("TAPSTER_HOME", str(server.home))
    monkeypatch.delenv("TAPSTER_URL", raising=False)
    monkeypatch.delenv("TAPSTER_KEY", raising=False)

    def run(*words: object) -> tuple[int, Any]:
        capsys.readouterr()
        code = main([*map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def show(call: Call, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command for people; what it printed. It must succeed."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == 0
        return capsys.readouterr().out

    return run


def test_from_a_file_to_predictions(call: Call, show: Any, fruit: Path, tmp_path: Path) -> None:
    code, made = call("data", "add", "fruit", fruit)
    assert (code, made["name"], made["version"], made["rows"]) == (0, "fruit", 1, 240)
    code, again = call("data", "add", "fruit", fruit)
    assert (code, again["version"], again["digest"]) == (0, 1, made["digest"])
    assert "fruit" in show("data", "list")
    seen = show("data", "show", "fruit", "--target", "kind")
    assert all(name in seen for name in COLUMNS)
    assert "▁" in seen or "█" in seen

    words = ("train", "fruit@1", "--target", "kind", "--model", "fruit", "--algorithm", "logistic")
    code, job = call(*words, "--seed", 3, "--follow")
    assert (code, job["status"], job["result"]["model"]) == (0, "succeeded", "fruit")
    code, shown = call("models", "show", "fruit")
    assert (code, shown["model"]["version"]) == (0, 1)
    assert shown["model"]["metrics"]["accuracy"]["value"] > 0.8
    people = show("models", "show", "fruit")
    assert "TRUE \\ PREDICTED" in people
    assert "accuracy" in people

    code, live = call("deploy", "fruit", "--endpoint", "orchard")
    assert (code, live["status"], live["serving"]["version"]) == (0, "live", 1)
    rows = [
        {"length": 7.0, "width": 6.0, "colour": "red", "ripe": True, "picked": "2024-05-15"},
        {"length": 17.0, "width": None, "colour": "blue", "ripe": False, "picked": None},
    ]
    path = tmp_path / "rows.csv"
    path.write_text("length,width,colour,ripe,picked\n7.0,6,red,true,2024-05-15\n17,,blue,false,\n")
    code, from_csv = call("predict", "orchard", "--file", path)
    assert code == 0
    assert [answer["prediction"] for answer in from_csv["predictions"]] == ["apple", "banana"]
    for answer in from_csv["predictions"]:
        assert abs(sum(answer["probabilities"].values()) - 1) < 1e-5
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert call("predict", "orchard", "--file", tmp_path / "rows.json") == (0, from_csv)
    each = ["--row", json.dumps(rows[0]), "--row", json.dumps(rows[1])]
    assert call("predict", "orchard", *each) == (0, from_csv)
    assert "apple" in show("predict", "orchard", "--file", path)
    assert "orchard" in show("endpoints", "list")
    assert "fruit@1" in show("endpoints", "show", "orchard")


def test_rows_may_come_from_standard_input(
    call: Call, fruit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _deployed(call, fruit)
    text = b"length,width,colour,ripe,picked\n7,6,red,true,2024-05-15\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    code, found = call("predict", "orchard", "--file", "-")
    assert (code, found["predictions"][0]["prediction"]) == (0, "apple")


def _deployed(call: Call, fruit: Path) -> None:
    if call("endpoints", "show", "orchard")[0] == 0:
        return
    assert call("data", "add", "fruit", fruit)[0] == 0
    words = ("train", "fruit", "--target", "kind", "--model", "fruit", "--algorithm", "logistic")
    assert call(*words, "--seed", 3, "--follow")[0] == 0
    assert call("deploy", "fruit", "--endpoint", "orchard")[0] == 0


def test_versions_are_compared_named_rolled_back_moved_and_deleted(
    call: Call, show: Any, fruit: Path, tmp_path: Path
) -> None:
    _deployed(call, fruit)
    words = ("train", "fruit", "--target", "kind", "--model", "fruit", "--algorithm", "knn")
    code, job = call(*words, "--follow")
    assert (code, job["result"]["version"]) == (0, 2)
    compared = show("models", "compare", "fruit")
    assert "fruit@1" in compared
    assert "fruit@2" in compared
    code, found = call("models", "compare", "fruit@1", "fruit@2")
    assert [version["version"] for version in found] == [1, 2]

    code, named = call("models", "alias", "fruit@2", "champion")
    assert (code, named["aliases"]) == (0, ["champion"])
    code, live = call("deploy", "fruit:champion", "--endpoint", "orchard")
    assert (code, live["serving"]["version"], live["previous"]["version"]) == (0, 2, 1)
    code, back = call("endpoints", "rollback", "orchard")
    assert (code, back["serving"]["version"]) == (0, 1)

    file = tmp_path / "fruit.tapster"
    code, written = call("models", "export", "fruit@2", file)
    assert (code, written["bytes"]) == (0, file.stat().st_size)
    code, copy = call("models", "import", "copied", file)
    assert (code, copy["digest"]) == (0, found[1]["digest"])
    assert call("models", "list", "--dataset", "fruit")[1] != []
    code, refused = call("models", "delete", "fruit@1")
    assert (code, refused["error"]["code"]) == (1, "conflict")
    assert "alias champion is now fruit@2\n" in show("models", "alias", "fruit", "champion")
    assert call("models", "alias", "fruit", "champion", "--remove")[0] == 0
    code, freed = call("models", "delete", "copied")
    assert (code, freed) == (0, {"freed": 0})
    assert "freed" in show("models", "delete", "fruit@2")


def test_odd_column_names_work_inert_and_exact(call: Call, show: Any, tmp_path: Path) -> None:
    draw = random.Random(2)
    names = ["'; DROP TABLE jobs--", '<b onload="x">', "🍎 ñ", 'a"b,c', "[bold red]x[/]"]
    rows = [[draw.random() for _ in names] for _ in range(60)]
    with (tmp_path / "odd.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "{target}"])
        writer.writerows([*row, 2 * row[0] - row[3]] for row in rows)
    _, made = call("data", "add", "odd", tmp_path / "odd.csv")
    assert [column["name"] for column in made["columns"]] == [*names, "{target}"]
    shown = show("data", "show", "odd")
    assert all(name in shown for name in names)
    words = ("train", "odd", "--target", "{target}", "--model", "odd", "--algorithm", "ols")
    assert call(*words, "--follow")[0] == 0
    assert all(name in show("models", "show", "odd") for name in names)
    assert call("deploy", "odd")[0] == 0
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows[:5]])
    _, found = call("predict", "odd", "--file", tmp_path / "rows.csv")
    expected = [2 * row[0] - row[3] for row in rows[:5]]
    assert [answer["prediction"] for answer in found["predictions"]] == pytest.approx(
        expected, abs=1e-4
    )


def test_data_is_cleaned_split_and_deleted(call: Call, show: Any, tmp_path: Path) -> None:
    path = _fruit(tmp_path / "messy.csv", 60)
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    assert call("data", "add", "messy", path)[1]["rows"] == 61
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"steps": [{"op": "drop_duplicates"}]}')
    code, cleaned = call("data", "clean", "messy", "--recipe", recipe)
    assert (code, cleaned["version"], cleaned["rows"]) == (0, 2, 60)
    words = ("data", "split", "messy@2", "--kind", "stratified", "--column", "kind")
    code, split = call(*words, "--fractions", "0.5,0.25,0.25", "--seed", 5)
    assert (code, split["seed"], sum(split["rows"])) == (0, 5, 60)
    assert "stratified" in show("data", "show", "messy")
    assert "freed" in show("data", "delete", "messy@1")
    assert call("data", "show", "messy@1")[1]["error"]["code"] == "not_found"


def test_jobs_are_listed_shown_and_their_logs_read(call: Call, show: Any, fruit: Path) -> None:
    assert call("data", "add", "fruit", fruit)[0] == 0
    code, found = call("jobs", "list", "--limit", 5)
    assert code == 0
    job = found[0]
    assert show("jobs", "list", "--status", "succeeded").count("succeeded") >= 1
    assert call("jobs", "show", job["id"], "--follow")[1]["status"] == "succeeded"
    assert job["id"] in show("jobs", "show", job["id"])
    code, log = call("jobs", "logs", job["id"], "--follow")
    assert (code, log["job"]) == (0, job["id"])
    code, refused = call("jobs", "cancel", job["id"])
    assert (code, refused["error"]["code"]) == (1, "conflict")


def test_a_running_job_is_cancelled(call: Call, fruit: Path) -> None:
    assert call("data", "add", "fruit", fruit)[0] == 0
    words = ("train", "fruit", "--target", "kind", "--model", "slow", "--time-limit", 120)
    code, job = call(*words)
    assert (code, job["status"]) == (0, "queued")
    assert call("jobs", "cancel", job["id"])[0] == 0
    code, ended = call("jobs", "show", job["id"], "--follow")
    assert (code, ended["error"]["code"]) == (1, "cancelled")
    assert call("models", "show", "slow")[1]["error"]["code"] == "not_found"


def test_keys_are_trusted_and_distrusted(call: Call, show: Any) -> None:
    key = "ab" * 32
    code, made = call("trust", "add", "berlin", key)
    assert (code, made["public_key"]) == (0, key)
    assert "berlin" in show("trust", "list")
    assert call("trust", "remove", "berlin")[0] == 0
    assert "berlin" not in show("trust", "list")


def test_resources_and_the_doctor_see_the_server(call: Call, show: Any) -> None:
    code, found = call("resources")
    assert (code, found["cores"] > 0) == (0, True)
    assert "job_slots" in show("resources")
    code, checked = call("doctor")
    servers = [check for check in checked["checks"] if check["name"] == "server"]
    assert (code, [check["status"] for check in servers]) == (0, ["ok"])


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["data", "show", "nosuch"], "not_found", "nosuch"),
        (["data", "add", "bad name", "fruit.csv"], "", "fruit.csv"),
        (["models", "show", "nosuch@3"], "not_found", "nosuch"),
        (["deploy", "nosuch"], "not_found", "nosuch"),
        (["endpoints", "rollback", "nosuch"], "not_found", "nosuch"),
        (["predict", "nosuch", "--row", "{}"], "not_found", "nosuch"),
        (["jobs", "show", "nosuch"], "not_found", "nosuch"),
        (["jobs", "logs", "nosuch"], "not_found", "nosuch"),
        (["trust", "add", "x", "nokey"], "invalid", "key"),
        (["trust", "remove", "nosuch"], "not_found", "nosuch"),
        (["models", "export", "nosuch", "nosuch.tapster"], "not_found", "nosuch"),
        (["train", "nosuch", "--target", "y", "--model", "m"], "not_found", "nosuch"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_refusals_name_the_thing_and_exit_1(
    call: Call, words: list[str], code: str, names: str
) -> None:
    status, document = call(*words)
    assert status == 1
    error = document["error"]
    assert names in error["message"]
    assert not code or error["code"] == code
    assert "/" not in error["message"] or "fruit.csv" in error["message"]


def test_training_refuses_what_is_not_there_with_what_is(call: Call, fruit: Path) -> None:
    assert call("data", "add", "fruit", fruit)[0] == 0
    words = ["train", "fruit", "--model", "m", "--target"]
    for more, told in (
        (["kin"], "kind"),
        (["kind", "--algorithm", "logistc"], "logistic"),
        (["kind", "--metric", "acuracy"], "accuracy"),
    ):
        status, document = call(*words, *more)
        assert (status, document["error"]["code"]) == (1, "invalid")
        assert told in document["error"]["hint"]


def test_people_count_rows_from_one_and_programs_from_zero(
    call: Call, fruit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _deployed(call, fruit)
    row = {"length": 7, "width": 6, "colour": "red", "ripe": True, "picked": "2024-05-15"}
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row, row | {"length": "long"}]))
    error = call("predict", "orchard", "--file", rows)[1]["error"]
    assert (error["message"][:5], error["field"]) == ("row 1", "rows[1].length")
    assert main(["predict", "orchard", "--file", str(rows)]) == 1
    assert "row 2, column 'length'" in capsys.readouterr().err


def test_rows_may_be_a_parquet_file(call: Call, fruit: Path, tmp_path: Path) -> None:
    _deployed(call, fruit)
    asked = pl.read_csv(fruit, try_parse_dates=True).drop("kind").head(5)
    asked.write_parquet(tmp_path / "rows.parquet")
    status, document = call("predict", "orchard", "--file", tmp_path / "rows.parquet")
    assert (status, len(document["predictions"])) == (0, 5)


def test_predictions_refuse_wrong_columns_by_name(call: Call, fruit: Path) -> None:
    _deployed(call, fruit)
    row = {"length": 7, "width": 6, "colour": "red", "ripe": True, "picked": "2024-05-15"}
    for wrong, named in (
        ({"lenght": 7}, "lenght"),
        ({"length": "long"}, "length"),
        ({"picked": "yesterday"}, "picked"),
    ):
        status, document = call("predict", "orchard", "--row", json.dumps(row | wrong))
        assert (status, document["error"]["code"]) == (1, "invalid")
        assert named in document["error"]["message"]
    del row["width"]
    status, document = call("predict", "orchard", "--row", json.dumps(row))
    assert "width" in document["error"]["message"]
