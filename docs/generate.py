"""Write docs/reference from the code: `python docs/generate.py [FOLDER]`; a test compares."""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GENERATED = "<!-- written by docs/generate.py; edit the code instead -->"


def pages() -> dict[str, str]:
    """Every generated page: file name to text."""
    return {
        "cli.md": _page("Command line", _commands()),
        "api.md": _page("Control API", _routes()),
        "settings.md": _page("Settings", _settings()),
        "errors.md": _page("Errors", _errors()),
    }


def _page(title: str, lines: Iterator[str]) -> str:
    return "\n".join([f"# {title}", "", GENERATED, "", *lines]).rstrip() + "\n"


def _commands() -> Iterator[str]:
    import typer.main

    from tapster.cli import build

    yield "`--json` on every command prints one JSON document and nothing else on standard output."
    yield "Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Progress goes to standard error."
    yield ""
    yield from _command(typer.main.get_command(build()), "tapster")


def _command(command: Any, path: str) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children:
        for name, child in sorted(children.items()):
            yield from _command(child, f"{path} {name}")
        return
    words = " ".join(_spell(p) for p in command.params if p.param_type_name == "argument")
    yield from [f"## `{path}{' ' + words if words else ''}`", ""]
    yield from [_plain(command.help or ""), ""]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    if options:
        yield from ["| option | meaning |", "|---|---|"]
        for option in options:
            names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            default = option.default
            shown = "" if default in (None, "", False, (), []) or callable(default) else default
            note = f" (default {shown})" if shown != "" else ""
            yield f"| {names} | {_cell(option.help or '')}{note} |"
        yield ""


def _spell(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name or "").upper()
    return name if parameter.required else f"[{name}]"


def _routes() -> Iterator[str]:
    from tapster.app import build
    from tapster.core.settings import load

    with tempfile.TemporaryDirectory() as folder:
        app = build(load({}, home=Path(folder)))
        rights = app.state.rights
        document = app.openapi()
    yield "The OpenAPI description is served at `/api/openapi.json`."
    yield "Send `Authorization: Bearer KEY`."
    yield 'A refusal is `{"error": {"code", "message", "hint", "field"}}`; see [errors](errors.md).'
    yield from ["", "| route | right | what it does |", "|---|---|---|"]
    for path, operations in sorted(document["paths"].items()):
        for method, operation in sorted(operations.items()):
            right = "".join(rights[method.upper(), path])
            text = _cell(operation.get("description") or operation.get("summary", ""))
            yield f"| `{method.upper()} {path}` | {f'`{right}`' if right else 'none'} | {text} |"


def _settings() -> Iterator[str]:
    from tapster.core.settings import Settings

    yield "Options of `tapster up` win over variables, variables over defaults."
    yield from ["", "| variable | default | meaning |", "|---|---|---|"]
    for item in fields(Settings):
        default = item.default if item.default != "" else ""
        yield f"| `TAPSTER_{item.name.upper()}` | `{default}` | {item.metadata['help']} |"


def _errors() -> Iterator[str]:
    from tapster.contract.errors import CODES, GRPC_STATUS, HTTP_STATUS

    yield "One set of codes; each transport spells them in its own way."
    yield from ["", "| code | HTTP | gRPC |", "|---|---|---|"]
    for code in CODES:
        yield f"| `{code}` | {HTTP_STATUS[code]} | {GRPC_STATUS[code]} |"


def _cell(text: str) -> str:
    return " ".join(_plain(text).split()).replace("|", "\\|")


def _plain(text: str) -> str:
    return text.replace("\b\n", "").replace("\b", "").strip()


def main(folder: Path) -> None:
    """Write every page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "reference")
