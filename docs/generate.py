"""Write docs/reference from the code: `python docs/generate.py [FOLDER]`; a test compares."""

import inspect
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
        "sdk.md": _page("Python SDK", _methods()),
        "algorithms.md": _page("Algorithms and metrics", _algorithms()),
        "recipes.md": _page("Recipe steps", _operations()),
        "settings.md": _page("Settings", _settings()),
        "errors.md": _page("Errors", _errors()),
        "rights.md": _page("Rights", _rights()),
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
            right = "".join(rights[method.upper(), path]).replace("none", "")
            text = _cell(operation.get("description") or operation.get("summary", ""))
            yield f"| `{method.upper()} {path}` | {f'`{right}`' if right else 'none'} | {text} |"


def _methods() -> Iterator[str]:
    import tapster
    from tapster.client import Client
    from tapster.contract import control
    from tapster.contract.errors import TapsterError
    from tapster.contract.limits import Limit

    yield "Every refusal raises `TapsterError` (`code`, `message`, `hint`, `field`)."
    yield from ["", f"## `tapster.connect{_signature(tapster.connect)}`", ""]
    yield from [inspect.getdoc(tapster.connect) or "", "", "## `tapster.client.Client`", ""]
    yield from [inspect.getdoc(Client) or "", ""]
    for name, member in _members(Client):
        if name.startswith("_"):
            continue
        heading = name if isinstance(member, property) else f"{name}{_signature(member)}"
        yield from [f"### `{heading}`", "", inspect.getdoc(member) or "", ""]
    yield from ["## What they return", "", "Frozen dataclasses of `tapster.contract`.", ""]
    for noun in (control.DatasetVersion, control.Split, control.Job, control.ModelVersion,
                 control.Endpoint, control.Tenant, control.Member, control.Role, control.Key,
                 control.Session, Limit):  # fmt: skip
        yield from [f"### `{noun.__name__}`", "", inspect.getdoc(noun) or "", ""]
        yield from [", ".join(f"`{item.name}`" for item in fields(noun)) + ".", ""]
    yield from ["## `TapsterError`", "", inspect.getdoc(TapsterError) or ""]


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class and those it stands on define."""
    for each in kind.__mro__[:-1]:
        yield from vars(each).items()


def _signature(function: Any) -> str:
    shape = inspect.signature(function)
    kept = [p.replace(annotation=p.empty) for p in shape.parameters.values() if p.name != "self"]
    return str(shape.replace(parameters=kept, return_annotation=shape.empty))


class _Recorder:
    """A search space that writes down what it was asked for. See trainers.Space."""

    def __init__(self) -> None:
        self.ranges: dict[str, str] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.ranges[name] = f"{low:g} to {high:g}{' (log)' if log else ''}"
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.ranges[name] = f"{low} to {high}{' (log)' if log else ''}"
        return low

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        self.ranges[name] = " or ".join(map(str, choices))
        return choices[0]


def _algorithms() -> Iterator[str]:
    from tapster.training import trainers

    yield "What `tapster train --algorithm` takes besides `auto`. An underscore may be written for"
    yield "a hyphen. Defaults are those for 1,000 rows; `needs` names an extra of the package."
    for name in trainers.names():
        trainer = trainers.get(name)
        yield from ["", f"## `{name}`", "", (inspect.getdoc(trainer) or "").split("\n\n")[0], ""]
        tasks = [task for task in trainers.TASKS if task in trainer.tasks]
        yield f"- tasks: {', '.join(tasks)}"
        holes = "imputed with the median and flagged" if trainer.needs.missing == "impute" else ""
        yield f"- missing numbers: {holes or 'a branch of their own'}"
        if trainer.largest < 1 << 60:
            yield f"- left out of `auto` above {trainer.largest:,} rows to train on"
        if trainer.requires:
            yield f"- needs: {', '.join(trainer.requires)} (`pip install 'tapster[boost]'`)"
        recorder = _Recorder()
        trainer.space(recorder, tasks[0])
        defaults = trainer.defaults(tasks[0], 1000)
        for parameter, values in recorder.ranges.items():
            first = f"; default {defaults[parameter]}" if parameter in defaults else ""
            yield f"- `{parameter}`: {values}{first}"
    yield from _metrics()


def _metrics() -> Iterator[str]:
    from tapster.training.vocabulary import DEFAULT, EVERY_METRIC, LOWER_IS_BETTER, metrics_of

    yield from [
        "",
        "## Metrics",
        "",
        "| metric | tasks | better | default of |",
        "|---|---|---|---|",
    ]
    for metric in EVERY_METRIC:
        tasks = ", ".join(task for task in DEFAULT if metric in metrics_of(task))
        better = "lower" if metric in LOWER_IS_BETTER else "higher"
        default = ", ".join(task for task, chosen in DEFAULT.items() if chosen == metric)
        yield f"| `{metric}` | {tasks} | {better} | {default} |"


def _operations() -> Iterator[str]:
    from tapster.datasets import declarations, recipes

    yield "The steps of a recipe, for `tapster data clean` and `tapster train --recipe`."
    columns = {
        "optional": "optional; every column it fits when left out",
        "required": "required",
    }
    for name, operation in declarations.OPERATIONS.items():
        about = inspect.getdoc(recipes._OPERATIONS[name]) or ""
        yield from ["", f"## `{name}`", "", about, ""]
        if operation.columns in columns:
            yield f"- `columns`: {columns[operation.columns]}"
        for key, parameter in operation.parameters.items():
            yield f"- `{key}`: {_parameter(parameter)}"


def _parameter(parameter: Any) -> str:
    kinds = {
        "flag": "true or false",
        "count": "2 to 10,000",
        "number": "a number",
        "list": "a list",
        "map": "an object",
        "value": "a value",
        "text": "a text",
    }
    values = " or ".join(parameter.choices) or kinds[parameter.kind]
    if parameter.required:
        return f"{values}; required"
    default = parameter.default
    if isinstance(default, list):
        default = ", ".join(default)
    spelled = str(default).lower() if isinstance(default, bool) else default
    return f"{values}; default {spelled}" if default not in (None, "") else values


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


def _rights() -> Iterator[str]:
    from tapster.contract.control import INSTALLATION
    from tapster.tenancy.rights import RIGHTS, ROLES, holds

    yield "What each route needs, and which of the roles that come along may use it. `none` is no"
    yield "key, `any` a valid key or session of whichever role, `agent` the data plane's own"
    yield "credential. Tests call every route here as every role. Rights in _italics_ are over the"
    yield "whole installation and count only in its own tenant, `default`."
    yield from ["", "| who asks | HTTP | gRPC |", "|---|---|---|"]
    yield (
        "| nobody; with a key that is unknown, revoked or expired; with a session that has ended |"
        " 401 | `UNAUTHENTICATED` |"
    )
    yield "| a valid key that lacks the right | 403 | `PERMISSION_DENIED` |"
    yield "| a valid key whose tenant is suspended | 403, and why | `PERMISSION_DENIED`, and why |"
    yield from ["", "## Rights", "", "| right | permits to | " + " | ".join(ROLES) + " |"]
    yield "|---|---|" + "---|" * len(ROLES)
    for right, permits in RIGHTS.items():
        marks = ["yes" if holds(held, right) else "" for held in ROLES.values()]
        spelled = f"_`{right}`_" if right in INSTALLATION else f"`{right}`"
        yield f"| {spelled} | {permits} | " + " | ".join(marks) + " |"
    yield from ["", "`AREA:*` is every right of an area, `*` every right."]
    for title, found in (("Control API", _control()), ("REST", _rest()), ("gRPC", _grpc())):
        yield from ["", f"## {title}", "", "| route | right | " + " | ".join(ROLES) + " |"]
        yield "|---|---|" + "---|" * len(ROLES)
        for route, right in found:
            marks = ["yes" if _lets_in(held, right) else "" for held in ROLES.values()]
            yield f"| `{route}` | `{right}` | " + " | ".join(marks) + " |"


def _lets_in(held: frozenset[str], right: str) -> bool:
    from tapster.tenancy.rights import ANY, NONE, holds

    return right in {ANY, NONE} or (right != "agent" and holds(held, right))


def _control() -> Iterator[tuple[str, str]]:
    from tapster.app import build
    from tapster.core.settings import load

    with tempfile.TemporaryDirectory() as folder:
        rights = build(load({}, home=Path(folder))).state.rights
    for method, path in sorted(rights, key=lambda route: (route[1], route[0])):
        yield f"{method} {path}", "".join(rights[method, path])
    yield "GET /api/openapi.json", "none"


def _rest() -> Iterator[tuple[str, str]]:
    from tapster.serving.rest.routes import TEMPLATES, Routes

    routes = Routes()
    for template in sorted(TEMPLATES):
        route = routes.find(template.replace("{", "").replace("}", "").encode())
        right = "none" if route.public else route.right
        yield f"{route.method.decode()} {template}", right


def _grpc() -> Iterator[tuple[str, str]]:
    from tapster.serving.rpc.services import all_methods

    for path, method in sorted(all_methods().items()):
        yield path.decode(), "none" if method.public else method.right


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
