"""`tapster endpoints` and `tapster predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, emit, read_text
from tapster.contract.errors import TapsterError

app = typer.Typer(help="Names that callers use, and what they serve.")
Name = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's name.")]
Tenants = Annotated[
    list[str] | None, typer.Option("--with", metavar="TENANT", help="A tenant; may be repeated.")
]


def add_to(root: typer.Typer) -> None:
    """Put `predict` on the root."""
    command(
        root,
        "predict",
        "tapster predict wine --file rows.csv",
        """tapster predict wine --row '{"alcohol": 9.4, "color": "red"}'""",
    )(predict)


def predict(
    endpoint: Name,
    file: Annotated[
        Path | None, typer.Option(metavar="rows.csv|.json|.parquet|-", help="Rows; - is stdin.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(metavar="JSON", help="One row as a JSON object.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask an endpoint for predictions."""
    from tapster.cli import tables
    from tapster.client.values import further

    with client() as tapster:
        rows = _rows(tapster, endpoint, file, row or [])
        try:
            answers = tapster.predict(endpoint, rows)
        except TapsterError as error:  # people count rows from 1, as the table of answers does
            raise error if as_json else further(error, 1) from None
    emit(as_json, {"predictions": answers}, lambda: tables.predictions(answers))


def _rows(tapster: Any, endpoint: str, file: Path | None, row: list[str]) -> list[dict[str, Any]]:
    from tapster.client.values import from_parquet, from_text

    if (file is None) == (not row):
        raise TapsterError(
            "invalid",
            "give rows to predict, by either --file or --row",
            hint=f"tapster predict {endpoint} --file rows.csv",
        )
    if file is None:
        return [one for text in row for one in from_text(text, {}, form="json")]
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return from_parquet(file)
    form = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}.get(suffix, "")
    return from_text(read_text(file), tapster.signature(endpoint), form=form)


@command(app, "list", "tapster endpoints list")
def list_endpoints(as_json: Json = False) -> None:
    """List endpoints."""
    from tapster.cli import traffic

    with client() as tapster:
        found = tapster.endpoints()
    emit(as_json, found, lambda: traffic.endpoints(found))


@command(app, "show", "tapster endpoints show wine")
def show(endpoint: Name, as_json: Json = False) -> None:
    """Show what an endpoint serves, how its versions do, and how it is called."""
    from tapster.cli import traffic

    with client() as tapster:
        found = tapster.endpoint(endpoint)
        rest_url = tapster.rest_url
    emit(as_json, found, lambda: traffic.endpoint(found, rest_url))


@command(
    app,
    "set",
    "tapster endpoints set wine deadline=2s queue=100",
    "tapster endpoints set wine weights=quality@1=90,quality@2=10",
    "tapster endpoints set wine shadow=none",
)
def change(
    endpoint: Name,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="OPTION=VALUE",
            help="deadline, window, cache or idle (5ms, 2s, 10m), queue, concurrency, memory (1G);"
            " `default` undoes one. weights=A@1=90,A@2=10; shadow=A@3 or none.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Change how an endpoint is served, who answers, and with which share."""
    from tapster.cli import quantities, traffic

    given = quantities.settings(settings)
    with client() as tapster:
        found = tapster.endpoint_set(endpoint, **given)
        rest_url = tapster.rest_url
    emit(as_json, found, lambda: traffic.endpoint(found, rest_url))


@command(app, "rollback", "tapster endpoints rollback wine")
def rollback(endpoint: Name, as_json: Json = False) -> None:
    """Serve what the endpoint served before; end a canary that is under way."""
    from tapster.cli import traffic

    with client() as tapster:
        live = tapster.rollback(endpoint)
        rest_url = tapster.rest_url
    emit(as_json, live, lambda: traffic.deployed(live, rest_url))


@command(
    app,
    "share",
    "tapster endpoints share wine --with acme",
    "tapster endpoints share wine --with-all",
)
def share(
    endpoint: Name,
    tenant: Tenants = None,
    everybody: Annotated[
        bool, typer.Option("--with-all", help="With every tenant there is or will be.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let other tenants call an endpoint, with keys of their own and at their expense."""
    with client() as tapster:
        seen = tapster.endpoint_share(endpoint, tenant or [], everybody=everybody)
    emit(as_json, seen, lambda: f"endpoint {endpoint} is shared with {_consumers(seen.shared)}")


@command(
    app,
    "withdraw",
    "tapster endpoints withdraw wine --from acme",
    "tapster endpoints withdraw wine",
)
def withdraw(
    endpoint: Name,
    tenant: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="TENANT", help="Only from this tenant."),
    ] = None,
    everybody: Annotated[
        bool, typer.Option("--from-all", help="What was shared with every tenant.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let other tenants call an endpoint no longer; at once, and nobody if none is named."""
    with client() as tapster:
        seen = tapster.endpoint_withdraw(endpoint, tenant or [], everybody=everybody)
    emit(as_json, seen, lambda: f"endpoint {endpoint} is shared with {_consumers(seen.shared)}")


def _consumers(shared: list[str]) -> str:
    return "all" if "*" in shared else ", ".join(shared) or "nobody"


@command(app, "delete", "tapster endpoints delete wine")
def delete(endpoint: Name, as_json: Json = False) -> None:
    """Stop serving at a name; the model stays."""
    with client() as tapster:
        done = tapster.endpoint_delete(endpoint)
    emit(as_json, done, lambda: f"endpoint {endpoint} is gone")
