"""`tapster deploy`, `tapster endpoints` and `tapster predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, emit, read_text
from tapster.contract.errors import TapsterError

app = typer.Typer(help="Names that callers use, and what they serve.")
Name = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's name.")]


def add_to(root: typer.Typer) -> None:
    """Put `deploy` and `predict` on the root."""
    command(
        root,
        "deploy",
        "tapster deploy wine-quality",
        "tapster deploy wine-quality:champion --endpoint wine",
    )(deploy)
    command(
        root,
        "predict",
        "tapster predict wine --file rows.csv",
        """tapster predict wine --row '{"alcohol": 9.4, "color": "red"}'""",
    )(predict)


def deploy(
    model: Annotated[str, typer.Argument(metavar="NAME[@VERSION|:ALIAS]", help="What to serve.")],
    endpoint: Annotated[str, typer.Option(help="Where; the model's name by default.")] = "",
    as_json: Json = False,
) -> None:
    """Serve a model at an endpoint; returns once traffic has switched."""
    from tapster.cli import tables

    with client() as tapster:
        live = tapster.deploy(model, endpoint)
        rest_url = tapster.rest_url
    emit(as_json, live, lambda: tables.deployed(live, rest_url))


def predict(
    endpoint: Name,
    file: Annotated[
        Path | None, typer.Option(metavar="rows.csv|rows.json|-", help="Rows; - is stdin.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(metavar="JSON", help="One row as a JSON object.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask an endpoint for predictions."""
    from tapster.cli import tables

    with client() as tapster:
        rows = _rows(tapster, endpoint, file, row or [])
        answers = tapster.predict(endpoint, rows)
    emit(as_json, {"predictions": answers}, lambda: tables.predictions(answers))


def _rows(tapster: Any, endpoint: str, file: Path | None, row: list[str]) -> list[dict[str, Any]]:
    from tapster.client.values import from_text

    if (file is None) == (not row):
        raise TapsterError(
            "invalid",
            "give rows to predict, by either --file or --row",
            hint=f"tapster predict {endpoint} --file rows.csv",
        )
    if file is None:
        return [one for text in row for one in from_text(text, {}, form="json")]
    suffix = file.suffix.lower()
    form = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}.get(suffix, "")
    return from_text(read_text(file), tapster.signature(endpoint), form=form)


@command(app, "list", "tapster endpoints list")
def list_endpoints(as_json: Json = False) -> None:
    """List endpoints."""
    from tapster.cli import tables

    with client() as tapster:
        found = tapster.endpoints()
    emit(as_json, found, lambda: tables.endpoints(found))


@command(app, "show", "tapster endpoints show wine")
def show(endpoint: Name, as_json: Json = False) -> None:
    """Show what an endpoint serves, served before, and how it is called."""
    from tapster.cli import tables

    with client() as tapster:
        found = tapster.endpoint(endpoint)
        rest_url = tapster.rest_url
    emit(as_json, found, lambda: tables.endpoint(found, rest_url))


@command(app, "rollback", "tapster endpoints rollback wine")
def rollback(endpoint: Name, as_json: Json = False) -> None:
    """Serve what the endpoint served before."""
    from tapster.cli import tables

    with client() as tapster:
        live = tapster.rollback(endpoint)
        rest_url = tapster.rest_url
    emit(as_json, live, lambda: tables.deployed(live, rest_url))


@command(app, "delete", "tapster endpoints delete wine")
def delete(endpoint: Name, as_json: Json = False) -> None:
    """Stop serving at a name; the model stays."""
    with client() as tapster:
        done = tapster.endpoint_delete(endpoint)
    emit(as_json, done, lambda: f"endpoint {endpoint} is gone")
