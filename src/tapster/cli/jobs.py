"""`tapster jobs` and `tapster resources`."""

import sys
from typing import Annotated

import typer

from tapster.cli.output import Json, client, command, emit, inert

app = typer.Typer(help="Work that is running, waiting or done.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Follow = Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")]


def add_to(root: typer.Typer) -> None:
    """Put `resources` on the root."""
    command(root, "resources", "tapster resources")(resources)


@command(app, "list", "tapster jobs list", "tapster jobs list --status running")
def list_jobs(
    status: Annotated[
        str, typer.Option(help="queued, running, succeeded, failed or cancelled.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    from tapster.cli import tables

    with client() as tapster:
        found = tapster.jobs(status, limit)
    emit(as_json, found, lambda: tables.jobs(found))


@command(app, "show", "tapster jobs show job_1f0c", "tapster jobs show job_1f0c --follow")
def show(job: Id, follow: Follow = False, as_json: Json = False) -> None:
    """Show a job: its state, what it was asked, what came of it."""
    from tapster.cli import evaluations, tables
    from tapster.cli.progress import shown

    with client() as tapster:
        seen = tapster.job(job)
        if follow:
            with shown(f"{seen.kind} {seen.id}", evaluations.live) as bar:
                seen = tapster.wait(seen, bar.job)
    emit(as_json, seen, lambda: tables.job(seen))


@command(app, "logs", "tapster jobs logs job_1f0c --follow")
def logs(job: Id, follow: Follow = False, as_json: Json = False) -> None:
    """Print what a job's process wrote."""
    with client() as tapster:
        if as_json:
            emit(True, {"job": job, "log": "".join(tapster.logs(job, follow))}, lambda: "")
            return
        for piece in tapster.logs(job, follow):
            sys.stdout.write(inert(piece))
            sys.stdout.flush()


@command(app, "cancel", "tapster jobs cancel job_1f0c")
def cancel(job: Id, as_json: Json = False) -> None:
    """Stop a job; it ends within two seconds."""
    with client() as tapster:
        seen = tapster.cancel(job)
    told = "asked to stop" if seen.status == "running" else seen.status
    emit(as_json, seen, lambda: f"job {seen.id}: {told}")


def resources(as_json: Json = False) -> None:
    """Show processors, memory, disk and job slots: what there is and what is in use."""
    from tapster.cli import tables

    with client() as tapster:
        found = tapster.resources()
    emit(as_json, found, lambda: tables.facts(found))
