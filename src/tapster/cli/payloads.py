"""`tapster payloads`, and `tapster endpoints log`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, counted, emit, inert
from tapster.contract.control import Endpoint
from tapster.contract.errors import TapsterError

app = typer.Typer(help="What was logged of requests and answers; nothing is unless asked for.")
Name = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's name.")]
Since = Annotated[str, typer.Option(help="From this day or time on, or so long ago: 2h, 7d.")]


def add_to(endpoints: typer.Typer) -> None:
    """Put `log` on `endpoints`."""
    command(
        endpoints,
        "log",
        "tapster endpoints log wine --sample 0.1 --redact email,card --drop name --keep 7d",
        "tapster endpoints log wine off",
    )(log)


def log(
    endpoint: Name,
    switch: Annotated[str, typer.Argument(metavar="[on|off]", help="Or not any more.")] = "on",
    *,
    sample: Annotated[
        float | None, typer.Option(help="Share of the requests, up to 1; all by default.")
    ] = None,
    redact: Annotated[
        str | None,
        typer.Option(
            help="Patterns: email, iban, card, ip, phone; all by default, `none` for secrets only."
        ),
    ] = None,
    expression: Annotated[
        list[str] | None, typer.Option(help="A regular expression (RE2); may be repeated.")
    ] = None,
    drop: Annotated[str, typer.Option(help="Columns to leave out: name,street.")] = "",
    mask: Annotated[str, typer.Option(help="Columns whose values become [masked].")] = "",
    hashed: Annotated[
        str, typer.Option("--hash", help="Columns whose values become a keyed hash.")
    ] = "",
    size: Annotated[str, typer.Option(help="Bytes of a payload at most: 16K, 1M.")] = "",
    keep: Annotated[str, typer.Option(help="How long it is kept: 12h, 7d.")] = "",
    as_json: Json = False,
) -> None:
    """Log what an endpoint is asked and answers, with what nobody should read taken out."""
    from tapster.cli import quantities

    if switch not in {"on", "off"}:
        raise TapsterError("invalid", f"{switch!r} is neither on nor off", field="switch")
    with client() as tapster:
        if switch == "off":
            seen = tapster.endpoint_log_off(endpoint)
        else:
            seen = tapster.endpoint_log(
                endpoint,
                sample=sample,
                redact=None if redact is None else [] if redact == "none" else _listed(redact),
                expressions=expression or [],
                drop=_listed(drop),
                mask=_listed(mask),
                hashed=_listed(hashed),
                size=quantities.size(size, "size") if size else None,
                keep=_span(keep) if keep else None,
            )
    emit(as_json, seen, lambda: _switched(seen))


@command(
    app, "list", "tapster payloads list wine --since 1h", "tapster payloads list wine --limit 5"
)
def list_payloads(
    endpoint: Name,
    since: Since = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """List what was logged of an endpoint, newest first. That you read it is recorded."""
    with client() as tapster:
        found = tapster.payloads(endpoint, since=_moment(since), limit=limit)
    emit(as_json, found, lambda: _table(found))


@command(app, "export", "tapster payloads export wine wine.jsonl", "tapster payloads export wine -")
def export(
    endpoint: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE|-", help="Where to; - is stdout.")],
    since: Since = "",
    as_json: Json = False,
) -> None:
    """Write what was logged as JSON, a line a request, oldest first."""
    if str(file) == "-":
        if as_json:
            raise TapsterError("invalid", "--json cannot go with -", hint="name a file")
        with client() as tapster:
            for piece in tapster.payloads_stream(endpoint, since=_moment(since)):
                sys.stdout.buffer.write(piece)
        return
    with client() as tapster:
        written = tapster.payloads_export(endpoint, file, since=_moment(since))
    document = {"file": str(written), "bytes": written.stat().st_size}
    emit(as_json, document, lambda: f"written to {inert(str(written))}")


@command(app, "delete", "tapster payloads delete wine")
def delete(endpoint: Name, as_json: Json = False) -> None:
    """Delete what was logged of an endpoint so far."""
    with client() as tapster:
        done = tapster.payloads_delete(endpoint)
    emit(as_json, done, lambda: f"deleted {counted(done['deleted'], 'payload')} of {endpoint}")


@command(
    app, "agree", "tapster payloads agree acme--wine", "tapster payloads agree acme--wine --not"
)
def agree(
    endpoint: Annotated[
        str, typer.Argument(metavar="ENDPOINT", help="One that another tenant shares with you.")
    ],
    refuse: Annotated[bool, typer.Option("--not", help="Not any more.")] = False,
    as_json: Json = False,
) -> None:
    """Let the owner of an endpoint log what you ask of it; without this nobody does."""
    with client() as tapster:
        done = (tapster.payloads_disagree if refuse else tapster.payloads_agree)(endpoint)
    verb = "may" if done["agreed"] else "may not"
    emit(as_json, done, lambda: f"{done['owner']} {verb} log what you ask of {endpoint}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _span(text: str) -> float:
    """Seconds that a span such as 90s, 12h or 7d takes."""
    from tapster.cli import quantities

    if text.endswith("d"):
        return quantities.number(text[:-1], "keep") * 86400
    return quantities.duration(text, "keep")


def _moment(text: str) -> float:
    """Seconds since 1970 at a day, a time, or so long ago; 0 for nothing."""
    import time
    from datetime import datetime

    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return max(0.0, time.time() - _span(text))


def _switched(seen: Endpoint) -> str:
    if seen.logging is None:
        return f"nothing more of {seen.name} is logged"
    return f"{seen.name} is logged: {described(seen.logging)}"


def described(rules: dict[str, Any]) -> str:
    """What is logged, in a line."""
    days = rules["keep"] / 86400
    kept = f"{days:g} days" if days >= 1 else f"{rules['keep']:g} s"
    parts = [f"{rules['sample']:g} of requests, kept {kept}, without"]
    taken = ["secrets", *rules["patterns"], *(repr(each) for each in rules["expressions"])]
    parts.append(", ".join(taken))
    for verb in ("drop", "mask", "hash"):
        if rules[verb]:
            parts.append(f"; {verb}: {', '.join(rules[verb])}")
    if rules["agreed"]:
        parts.append(f"; agreed: {', '.join(rules['agreed'])}")
    return " ".join(parts).replace(" ;", ";")


def _table(found: list[dict[str, Any]]) -> Any:
    import json

    from tapster.cli.tables import table, when

    return table(
        ["TIME", "ID", "TENANT", "VERSION", "STATUS", "ROWS", "INPUTS", "OUTPUTS"],
        (
            [
                when(each["time"]),
                inert(each["id"]),
                each["tenant"],
                each["version"],
                each["status"],
                each["rows"],
                *(inert(json.dumps(each.get(part, "")))[:60] for part in ("inputs", "outputs")),
            ]
            for each in found
        ),
    )
