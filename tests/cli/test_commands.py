"""The command line without a server: help, usage, errors, exit codes, start-up."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tapster.cli import build, main


def _commands() -> Iterator[list[str]]:
    root: Any = typer.main.get_command(build())
    for name, command in root.commands.items():
        inside = getattr(command, "commands", {})
        yield from ([name, inner] for inner in inside) if inside else [[name]]


COMMANDS = list(_commands())


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAPSTER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TAPSTER_URL", raising=False)
    monkeypatch.delenv("TAPSTER_KEY", raising=False)


def test_every_command_of_the_release_is_there() -> None:
    there = {" ".join(words) for words in COMMANDS}
    assert there == {
        *("up", "demo", "doctor", "train", "deploy", "predict", "resources"),
        *("login", "logout", "whoami"),
        *(f"data {verb}" for verb in ("add", "list", "show", "clean", "split", "delete")),
        *(
            f"models {verb}"
            for verb in ("list", "show", "compare", "alias", "import", "export", "delete")
        ),
        *(f"endpoints {verb}" for verb in ("list", "show", "set", "rollback", "delete", "log")),
        *(f"payloads {verb}" for verb in ("list", "export", "delete", "agree")),
        *(f"jobs {verb}" for verb in ("list", "show", "logs", "cancel")),
        *(f"trust {verb}" for verb in ("list", "add", "remove")),
        *(
            "models share",
            "models withdraw",
            "usage",
            "endpoints share",
            "endpoints withdraw",
            "tenants erase",
            "tenants verify",
        ),
        *(f"audit {verb}" for verb in ("list", "verify", "export")),
        *(f"invoices {verb}" for verb in ("list", "show", "export")),
        *(f"limits {verb}" for verb in ("set", "show", "delete")),
        *(f"prices {verb}" for verb in ("set", "list", "delete")),
        *(f"tenants {verb}" for verb in ("add", "list", "show", "suspend", "resume", "weigh")),
        *(f"tenants {verb}" for verb in ("rekey", "rekeyings")),
        *(f"members {verb}" for verb in ("add", "list", "show", "set", "password", "suspend")),
        *(f"members {verb}" for verb in ("resume", "remove", "sessions")),
        *(f"roles {verb}" for verb in ("list", "show", "set", "delete")),
        *(f"keys {verb}" for verb in ("create", "list", "rotate", "revoke")),
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_says_what_it_does_and_shows_an_example(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: tapster {' '.join(words)}" in shown
    assert "--json" in shown


def test_without_arguments_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nosuch"], "nosuch"),
        (["data"], "command"),
        (["data", "add", "x"], "PATH|URL"),
        (["train", "d"], "--target"),
        (["train", "d", "--target", "y", "--model", "m", "--trials", "many"], "--trials"),
        (["jobs", "list", "--limit", "0"], "limit"),
    ],
)
def test_usage_errors_exit_2_and_name_the_help(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert told in streams.err
    assert "hint: see: tapster" in streams.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["keys", "create", "--role", "owner", "--tenant", ""], "'--tenant' is empty"),
        (["keys", "create", "--role", "owner", "--tenant="], "'--tenant' is empty"),
        (["limits", "set", "requests=1/day", "--key", ""], "'--key' is empty"),
        (["data", "add", "x", ""], "an argument is empty"),
        (["audit", "export", ""], "an argument is empty"),
    ],
)
def test_what_is_empty_is_not_taken_as_left_out(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_words_for_people_may_be_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tenants", "add", "acme", "--title", ""]) == 1
    assert "no Tapster server" in capsys.readouterr().err


def test_json_usage_errors_are_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "add", "x", "--json"]) == 2
    streams = capsys.readouterr()
    assert json.loads(streams.out)["error"]["code"] == "invalid"
    assert streams.err == ""


NEEDING = [
    ["data", "list"],
    ["models", "show", "m"],
    ["deploy", "m"],
    ["predict", "m", "--row", "{}"],
    ["jobs", "logs", "j"],
    ["resources"],
    ["train", "d", "--target", "y", "--model", "m"],
]


@pytest.mark.parametrize("words", NEEDING, ids=" ".join)
def test_without_a_server_one_line_says_how_to_start_one(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: no Tapster server answers at http://127.0.0.1")
    assert hint == "hint: start one with: tapster up"
    assert main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unavailable"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data", "add", "d", "f.csv", "--type", "zip"], "COL=TYPE"),
        (["data", "split", "d", "--fractions", "a,b"], "a,b"),
        (["data", "clean", "d", "--recipe", "gone.json"], "gone.json"),
        (["deploy", "a", "b"], "one model too many"),
        (["deploy", "a=0.5", "b=0.5", "--ensemble"], "--endpoint"),
        (["deploy", "a=0.5", "b", "--ensemble", "--endpoint", "e"], "NAME@VERSION=WEIGHT"),
        (["deploy", "a=0.5", "a=0.5", "--ensemble", "--endpoint", "e"], "named twice"),
        (["deploy", "a", "--follow"], "--canary"),
        (["deploy", "a", "--canary", "5,x"], "'x' is not a number"),
        (["deploy", "a", "--canary", "5,100", "--interval", "soon"], "a duration such as"),
        (["endpoints", "set", "e", "deadline"], "OPTION=VALUE"),
        (["endpoints", "set", "e", "deadline=2y"], "a duration such as"),
        (["endpoints", "set", "e", "memory=lots"], "a size such as"),
        (["endpoints", "set", "e", "weights=a@1"], "NAME@VERSION=WEIGHT"),
    ],
)
def test_bad_options_are_told_before_anything_is_asked(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    assert told in capsys.readouterr().err


def test_a_recipe_may_be_json_or_toml(tmp_path: Path) -> None:
    from tapster.cli.output import read_recipe
    from tapster.contract.errors import TapsterError

    (tmp_path / "a.json").write_text('{"steps": [{"step": "drop_duplicates"}]}')
    (tmp_path / "a.toml").write_text('[[steps]]\nstep = "drop_duplicates"\n')
    (tmp_path / "b.json").write_text("steps: none")
    assert read_recipe(tmp_path / "a.json") == read_recipe(tmp_path / "a.toml")
    with pytest.raises(TapsterError, match=r"b\.json"):
        read_recipe(tmp_path / "b.json")


def test_version_and_module_are_the_same_program() -> None:
    words = [sys.executable, "-m", "tapster", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tapster 0.")


def test_output_to_a_closed_pipe_is_no_traceback() -> None:
    script = f"{sys.executable} -m tapster train --help | true"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_a_password_is_not_asked_for_where_nobody_could_type_it() -> None:
    words = [sys.executable, "-m", "tapster", "login", "ann"]
    environment = {**os.environ, "TAPSTER_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        words,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    assert done.returncode == 1
    assert "Warning" not in done.stderr
    assert "there is no terminal" in done.stderr
    assert "--password-file" in done.stderr


def test_one_is_not_spelled_as_many() -> None:
    from tapster.cli.output import counted

    assert [counted(n, "right") for n in (0, 1, 2000)] == ["0 rights", "1 right", "2,000 rights"]
