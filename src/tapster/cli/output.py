"""What commands print: one JSON document, or text for people; and how errors are told."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tapster.client import Client, connect
from tapster.contract.errors import TapsterError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
PIPE_WIDTH: Final = 160


def client() -> Client:
    """A client of the running server; no command but up, demo and doctor starts one."""
    return connect(start=False)


def command(app: typer.Typer, name: str, *examples: str) -> Callable[[Any], Any]:
    """Register a function as a command whose help ends with examples."""
    return app.command(name, epilog="Example: " + "\n\nExample: ".join(examples))


def emit(as_json: bool, document: Any, view: Callable[[], Any]) -> None:
    """Print `document` as JSON, or what `view` makes of it (a Rich renderable, or text)."""
    if as_json:
        print_json(document)
    else:
        console().print(view())


def print_json(document: Any) -> None:
    """Exactly one JSON document on stdout."""
    import msgspec

    data = msgspec.json.format(msgspec.json.encode(document), indent=2)
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.flush()


def console(error: bool = False) -> Any:
    """A Rich console that takes no markup from data; wide when nobody's terminal limits it."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(
        stderr=error, markup=False, highlight=False, emoji=False, width=width, soft_wrap=False
    )


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(inert(text), file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """`1 right`, `2 rights`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def inert(text: str) -> str:
    """`text` without characters that would command the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def tell(error: TapsterError, as_json: bool) -> None:
    """Report an error: on stderr for people, as a document on stdout for programs."""
    if as_json:
        print_json({"error": error.as_dict()})
        return
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


def read_recipe(path: Path | None) -> dict[str, Any] | None:
    """A recipe file, JSON or TOML. Raises TapsterError(invalid) naming the file."""
    if path is None:
        return None
    import json
    import tomllib

    text = read_text(path)
    try:
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except ValueError as error:
        raise TapsterError("invalid", f"the recipe {str(path)!r} cannot be read: {error}") from None
    if isinstance(found, list):
        found = {"steps": found}
    if not isinstance(found, dict):
        raise TapsterError("invalid", f"the recipe {str(path)!r} holds no object")
    return found


def read_text(path: Path) -> str:
    """A text file; `-` is stdin. Raises TapsterError(invalid) naming it."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TapsterError(
            "invalid", f"{str(path)!r} is not UTF-8 text", hint="save it as UTF-8"
        ) from None
    except OSError as error:
        raise TapsterError(
            "invalid", f"{str(path)!r} cannot be read: {error.strerror}", hint="check the path"
        ) from None
