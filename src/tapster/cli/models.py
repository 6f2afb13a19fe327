"""`tapster models`: the registry."""

from pathlib import Path
from typing import Annotated

import typer

from tapster.cli.output import Json, client, command, emit

app = typer.Typer(help="Look at, compare, name, move, share and delete models.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]
Tenants = Annotated[
    list[str] | None, typer.Option("--with", metavar="TENANT", help="A tenant; may be repeated.")
]
Ref = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION|:ALIAS]", help="A model, a version or an alias.")
]


@command(app, "list", "tapster models list", "tapster models list --dataset wine@2")
def list_models(
    dataset: Annotated[str, typer.Option(help="Every version trained on NAME[@VERSION].")] = "",
    as_json: Json = False,
) -> None:
    """List models, each with its newest version."""
    from tapster.cli import tables

    with client() as tapster:
        found = tapster.models_list(dataset)
    emit(as_json, found, lambda: tables.models(found))


@command(
    app, "show", "tapster models show wine-quality", "tapster models show wine-quality:champion"
)
def show(ref: Ref, as_json: Json = False) -> None:
    """Show a version: signature, lineage, metrics with intervals, confusion matrix."""
    from tapster.cli import evaluations

    with client() as tapster:
        version = tapster.models_show(ref)
        exact = f"{version.model}@{version.version}"
        # What another tenant's model was made from, and how it was compared, is its owner's.
        evaluation = {} if version.owner else tapster.models_evaluation(exact)
        lineage = {} if version.owner else tapster.models_lineage(exact)
    document = {"model": version, "evaluation": evaluation, "lineage": lineage}
    emit(as_json, document, lambda: evaluations.view(version, evaluation, lineage))


@command(app, "compare", "tapster models compare wine-quality", "tapster models compare a@1 b@3")
def compare(
    refs: Annotated[list[str], typer.Argument(metavar="NAME[@V]...", help="What to compare.")],
    as_json: Json = False,
) -> None:
    """Put metrics side by side: of given versions, or of all versions of one model."""
    from tapster.cli import evaluations

    with client() as tapster:
        if len(refs) == 1 and "@" not in refs[0] and ":" not in refs[0]:
            found = tapster.models_versions(refs[0])
        else:
            found = [tapster.models_show(ref) for ref in refs]
    emit(as_json, found, lambda: evaluations.comparison(found))


@command(app, "alias", "tapster models alias wine-quality@2 champion")
def alias(
    ref: Ref,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="champion, staging, ...")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away.")] = False,
    as_json: Json = False,
) -> None:
    """Point an alias at a version; what is deployed by alias follows."""
    with client() as tapster:
        if remove:
            model = ref.partition("@")[0].partition(":")[0]
            document, done = tapster.models_unalias(model, name), f"removed from {model}"
        else:
            document = tapster.models_alias(ref, name)
            done = f"is now {document['model']}@{document['version']}"
    emit(as_json, document, lambda: f"alias {name} {done}")


@command(
    app, "import", "tapster models import fraud fraud.tapster", "tapster models import m m.onnx"
)
def import_model(
    name: Name,
    path: Annotated[
        Path, typer.Argument(help="A package, an ONNX, skops or .pt2 file, or a folder.")
    ],
    as_json: Json = False,
) -> None:
    """Register a package from another installation, or a model that is none yet."""
    from tapster.cli import tables
    from tapster.cli.progress import shown

    with client() as tapster, shown(f"import {name}") as bar:
        made = tapster.models_import(name, path, on_send=bar.send, on_progress=bar.job)
    emit(as_json, made, lambda: tables.model(made))


@command(app, "export", "tapster models export wine-quality@2 wine-quality.tapster")
def export(
    ref: Ref,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    as_json: Json = False,
) -> None:
    """Write a version to one file that another installation can import."""
    from tapster.cli import tables

    with client() as tapster:
        written = tapster.models_export(ref, path)
    found = {"file": str(written), "bytes": written.stat().st_size}
    emit(as_json, found, lambda: f"wrote {written} ({tables.size(written.stat().st_size)})")


@command(
    app,
    "share",
    "tapster models share wine-quality --with acme",
    "tapster models share wine-quality --all",
)
def share(
    name: Name,
    tenant: Tenants = None,
    everybody: Annotated[
        bool, typer.Option("--all", "--with-all", help="With every tenant there is or will be.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let other tenants deploy a model, every version of it, at endpoints of their own."""
    with client() as tapster:
        seen = tapster.models_share(name, tenant or [], everybody=everybody)
    emit(as_json, seen, lambda: f"model {name} is shared with {_consumers(seen.shared)}")


@command(
    app,
    "withdraw",
    "tapster models withdraw wine-quality --from acme",
    "tapster models withdraw wine-quality",
)
def withdraw(
    name: Name,
    tenant: Annotated[
        list[str] | None,
        typer.Option("--from", "--with", metavar="TENANT", help="Only from this tenant."),
    ] = None,
    everybody: Annotated[
        bool, typer.Option("--all", "--from-all", help="From whoever may use it: the default.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let other tenants use a model no longer: their endpoints that serve it stop, at once."""
    with client() as tapster:
        seen = tapster.models_withdraw(name, tenant or [], everybody=everybody)
    emit(as_json, seen, lambda: f"model {name} is shared with {_consumers(seen.shared)}")


def _consumers(shared: list[str]) -> str:
    return "all" if "*" in shared else ", ".join(shared) or "nobody"


@command(app, "delete", "tapster models delete wine-quality@1")
def delete(ref: Ref, as_json: Json = False) -> None:
    """Delete a model, or one version of it, and free its storage."""
    from tapster.cli import tables

    with client() as tapster:
        freed = tapster.models_delete(ref)
    emit(as_json, freed, lambda: f"deleted {ref}, freed {tables.size(freed['freed'])}")
