"""`tapster audit`: who did what, and whether the record of it is whole."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, console, emit, inert, say
from tapster.contract.audit import AuditLine, Verdict
from tapster.contract.errors import TapsterError

app = typer.Typer(help="The record of every change and every refused attempt.")
Tenant = Annotated[str, typer.Option(help="Only lines of this tenant.")]
Since = Annotated[str, typer.Option("--from", help="From this day or time on: 2026-11-21.")]
Until = Annotated[str, typer.Option("--to", help="Before this day or time: 2026-11-21T12:00.")]
Action = Annotated[str, typer.Option(help="Only actions that contain this, such as DELETE.")]
Who = Annotated[str, typer.Option(help="Only of this key or member (id), or system, anonymous.")]


@command(app, "list", "tapster audit list --action DELETE", "tapster audit list --from 2026-11-21")
def list_lines(
    *,
    tenant: Tenant = "",
    since: Since = "",
    until: Until = "",
    action: Action = "",
    who: Who = "",
    before: Annotated[int, typer.Option(help="Go on below the line of this number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """List who did what, newest first."""
    with client() as tapster:
        found = tapster.audit_list(
            tenant=tenant,
            since=_seconds(since, "from"),
            until=_seconds(until, "to"),
            action=action,
            who=who,
            before=before,
            limit=limit,
        )
    emit(as_json, found, lambda: _table(found))


@command(
    app,
    "verify",
    "tapster audit verify",
    "tapster audit verify --file audit.jsonl --heads /mnt/heads/heads.jsonl",
)
def verify(
    file: Annotated[
        Path | None, typer.Option(help="Check an exported file instead; no server is asked.")
    ] = None,
    heads: Annotated[Path | None, typer.Option(help="Heads kept elsewhere, for --file.")] = None,
    key: Annotated[str, typer.Option(help="Public key that must have signed, for --file.")] = "",
    as_json: Json = False,
) -> None:
    """Check that no line was changed, removed, added, moved or cut off; exit 1 if one was."""
    from tapster.client.audit import check_export

    if file is None and (heads is not None or key):
        raise TapsterError("invalid", "--heads and --key go with --file", field="heads")
    with _progress() as progress:
        if file is not None:
            verdict = check_export(file, heads, key=key, on_progress=progress)
        else:
            with client() as tapster:
                verdict = tapster.audit_verify(progress)
    emit(as_json, verdict, lambda: _told(verdict))
    if not verdict.ok:
        raise typer.Exit(1)


@command(app, "export", "tapster audit export audit.jsonl", "tapster audit export - --who key_1f0c")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE|-", help="Where to; - is stdout.")],
    *,
    tenant: Tenant = "",
    since: Since = "",
    until: Until = "",
    action: Action = "",
    who: Who = "",
    as_json: Json = False,
) -> None:
    """Write lines as JSON, oldest first, and a signed seal as the last one."""
    wanted: dict[str, Any] = {
        "tenant": tenant,
        "since": _seconds(since, "from"),
        "until": _seconds(until, "to"),
        "action": action,
        "who": who,
    }
    if str(file) == "-":
        if as_json:
            raise TapsterError("invalid", "--json cannot go with -", hint="name a file")
        with client() as tapster:
            for piece in tapster.audit_stream(**wanted):
                sys.stdout.buffer.write(piece)
        return
    with client() as tapster:
        written = tapster.audit_export(file, **wanted)
    document = {"file": str(written), "bytes": written.stat().st_size}
    emit(as_json, document, lambda: f"written to {inert(str(written))}")


def _seconds(text: str, field: str) -> float | None:
    """Seconds since 1970 of a day, a time or a number; local time unless it says otherwise."""
    if not text:
        return None
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else _moment(text)
    except (ValueError, OverflowError):
        raise TapsterError(
            "invalid",
            f"{text[:100]!r} is not a day or a time",
            hint="such as 2026-11-21 or 2026-11-21T12:00:00Z",
            field=field,
        ) from None


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _table(found: list[AuditLine]) -> Any:
    from tapster.cli import tables

    return tables.table(
        ["NUMBER", "AT", "TENANT", "WHO", "FROM", "ACTION", "OBJECT", "OUTCOME"],
        (
            [
                line.number,
                tables.when(line.at),
                line.tenant or "-",
                line.who,
                line.client or "-",
                line.action,
                line.object or "-",
                _outcome(line),
            ]
            for line in found
        ),
    )


def _outcome(line: AuditLine) -> str:
    times = f" ({line.count} times)" if line.count > 1 else ""
    return f"{line.code or 'done'}{times}"


def _told(verdict: Verdict) -> str:
    seen = f"{verdict.lines:,} lines and {verdict.heads:,} signed heads checked"
    if verdict.ok:
        gone = f"; details of {verdict.destroyed:,} were erased" if verdict.destroyed else ""
        return f"the record is whole: {seen}{gone}"
    each = [f"line {fault.number}: {fault.problem}" if fault.number else fault.problem
            for fault in verdict.faults]  # fmt: skip
    return inert("\n".join([f"the record is not whole ({seen}):", *each]))


@contextmanager
def _progress() -> Iterator[Any]:
    """Told how far a check is: a live bar on a terminal, a line each quarter elsewhere."""
    if not sys.stderr.isatty():
        quarters = {0}

        def tell(done: int, total: int) -> None:
            quarter = 4 * done // max(total, 1)
            if total > 10_000 and quarter not in quarters:
                quarters.add(quarter)
                say(f"checking: {done / total:.0%}")

        yield tell
        return
    from rich.progress import Progress

    with Progress(console=console(error=True), transient=True) as live:
        task = live.add_task("checking", total=1.0)
        yield lambda done, total: live.update(task, completed=done / max(total, 1))
