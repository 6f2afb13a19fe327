"""Verbs over model versions: register, find, name, describe, trace, delete, import."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Job, ModelVersion
from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Manifest
from tapster.core import plugins
from tapster.core.parts import Parts
from tapster.jobs import service as jobs
from tapster.jobs.service import Handler
from tapster.registry import packages, store
from tapster.registry.references import ALIAS, NAME, number, parse
from tapster.tenancy import service as tenancy
from tapster.tenancy.shares import service as shares

_TAGS: Final = 100
_DESCRIPTION: Final = 10_000

InUse = Callable[[Connection, str, ModelVersion], list[str]]
Lent = Callable[[Connection, str, ModelVersion], bool]


def register(
    tx: Connection,
    tenant: str,
    *,
    model: str,
    digest: str,
    manifest: Manifest,
    bytes: int,
    signer: str,
    job: str,
    unvetted: Sequence[str] = (),
    trained_here: bool = True,
) -> ModelVersion:
    """Make a stored package the next version of `model`.

    The same package under the same model is the same version, however often it is registered.
    `trained_here`: the lineage's dataset is this installation's own.
    """
    check_name(model)
    for known in store.of_digest(tx, tenant, digest):
        if known.model == model:
            return known
    lineage = manifest.lineage
    version = store.add(
        tx,
        tenant,
        model,
        digest=digest,
        task=manifest.task,
        runtime=manifest.runtime,
        bytes=bytes,
        metrics=manifest.metrics,
        lineage=msgspec.to_builtins(lineage),
        signature=msgspec.to_builtins(manifest.signature),
        unvetted=list(unvetted),
        signer=signer,
        dataset=lineage.dataset if trained_here else "",
        dataset_version=lineage.dataset_version if trained_here else 0,
        dataset_digest=lineage.dataset_digest,
        job=job,
    )
    return resolve(tx, tenant, f"{model}@{version}")


def register_published(
    tx: Connection, job: Job, model: str, package: dict[str, Any], *, trained_here: bool = True
) -> ModelVersion:
    """`register` what `packages.publish` answered, for a job's apply."""
    return register(
        tx,
        job.tenant,
        model=model,
        digest=package["digest"],
        manifest=packages.manifest_of(package),
        bytes=package["bytes"],
        signer=package["signer"],
        job=job.id,
        unvetted=package.get("unvetted", ()),
        trained_here=trained_here,
    )


def resolve(tx: Connection, tenant: str, ref: str) -> ModelVersion:
    """The version of a tenant's own that NAME (its newest), NAME@VERSION or NAME:ALIAS names.

    Raises TapsterError(invalid) for a reference that cannot be one, TapsterError(not_found)
    naming what there is instead, and (forbidden) for what another tenant shares with this one.
    """
    model, version, alias = parse(ref)
    known = store.of_model(tx, tenant, model)
    if not known:
        raise _no_model(tx, tenant, model)
    if alias:
        number = store.aliases(tx, tenant, model).get(alias)
        if number is None:
            raise _no_alias(tx, tenant, model, alias)
        version = number
    if not version:
        return known[0]
    for found in known:
        if found.version == version:
            return found
    numbers = ", ".join(str(found.version) for found in known[:10])
    raise TapsterError(
        "not_found",
        f"model {model} has no version {version}",
        hint=f"its versions are: {numbers}" + (" ..." if len(known) > 10 else ""),
    )


def listing(
    tx: Connection, tenant: str, dataset: str = "", data_digest: str = ""
) -> list[ModelVersion]:
    """The newest version of each model; with `dataset` (NAME or NAME@VERSION) or the data's

    digest, every version that was trained on it.
    """
    if data_digest:
        return store.of_data_digest(tx, tenant, data_digest)
    if not dataset:
        return store.newest(tx, tenant)
    name, _, version = dataset.partition("@")
    if version and not number(version):
        raise TapsterError(
            "invalid", f"{dataset!r} is not NAME or NAME@VERSION of a dataset", field="dataset"
        )
    return store.of_dataset(tx, tenant, name, int(version or 0))


def versions(tx: Connection, tenant: str, ref: str) -> list[ModelVersion]:
    """All versions of a model, newest first, with their metrics. Raises TapsterError(not_found)."""
    model = parse(ref)[0]
    found = store.of_model(tx, tenant, model)
    if not found:
        raise _no_model(tx, tenant, model)
    return found


def describe(
    tx: Connection,
    tenant: str,
    ref: str,
    description: str | None = None,
    tags: dict[str, str] | None = None,
) -> ModelVersion:
    """Change a version's description or replace its tags; None leaves them as they are."""
    found = resolve(tx, tenant, ref)
    changes: dict[str, Any] = {}
    if description is not None:
        _check_length("description", description, _DESCRIPTION)
        changes["description"] = description
    if tags is not None:
        if len(tags) > _TAGS:
            raise TapsterError("invalid", f"more than {_TAGS} tags", field="tags")
        for key, value in tags.items():
            _check_length("tag", key, 100)
            _check_length(f"tag {key[:100]!r}", value, 1000)
        changes["tags"] = tags
    if changes:
        store.change(tx, tenant, found.model, found.version, **changes)
    return resolve(tx, tenant, f"{found.model}@{found.version}")


def check_servable(version: ModelVersion) -> None:
    """Raise TapsterError(unprocessable) for a version whose runtime is not installed here.

    One that is `unvetted` is served too, in a process of its own.
    """
    if version.runtime not in plugins.names("tapster.runtimes"):
        raise TapsterError(
            "unprocessable",
            f"{version.model}@{version.version} cannot be deployed: there is no runtime"
            f" {version.runtime!r} here",
            hint="install the plug-in that brings it and start the server again",
        )


def set_alias(tx: Connection, tenant: str, ref: str, alias: str) -> ModelVersion:
    """Point an alias at a version, moving it if it exists. Raises TapsterError(invalid)."""
    if not ALIAS.fullmatch(alias):
        raise TapsterError(
            "invalid",
            f"{alias[:100]!r} cannot be an alias",
            hint="begin with a letter; use up to 100 letters, digits, dots, dashes, underscores",
            field="alias",
        )
    found = resolve(tx, tenant, ref)
    store.set_alias(tx, tenant, found.model, alias, found.version)
    tenancy.revise(tx, tenant, f"alias {found.model}:{alias}", kind="model", ref=found.model)
    return resolve(tx, tenant, f"{found.model}@{found.version}")


def unset_alias(tx: Connection, tenant: str, model: str, alias: str) -> None:
    """Remove an alias. Raises TapsterError(not_found)."""
    if not store.of_model(tx, tenant, model):
        raise _no_model(tx, tenant, model)
    if not store.unset_alias(tx, tenant, model, alias):
        raise _no_alias(tx, tenant, model, alias, "it has none")
    tenancy.revise(tx, tenant, f"alias {model}:{alias} removed", kind="model", ref=model)


def aliases(tx: Connection, tenant: str, model: str) -> dict[str, int]:
    """A model's aliases: alias -> version; empty for a model that is not there."""
    return store.aliases(tx, tenant, model)


def lineage(tx: Connection, tenant: str, ref: str) -> dict[str, Any]:
    """Both directions: the data and versions this one was made from, and what else came of them.

    `data` names the dataset version, `parents` and `children` are versions that this one was made
    from and that were made from it, `same_data` are other versions that saw the same data.
    """
    found = resolve(tx, tenant, ref)
    origin = msgspec.convert(found.lineage, dict[str, Any])
    here = f"{found.model}@{found.version}"
    parent = str(origin.get("parent", ""))
    parents = store.of_digest(tx, tenant, parent) if parent else []
    data = str(origin.get("dataset_digest", ""))
    same = store.of_data_digest(tx, tenant, data) if data else []
    return {
        "data": {
            "dataset": origin.get("dataset", ""),
            "version": origin.get("dataset_version", 0),
            "digest": data,
        },
        "parents": _refs(parents),
        "children": _refs(store.of_parent(tx, tenant, found.digest)),
        "same_data": [other for other in _refs(same) if other != here],
    }


def delete(tx: Connection, tenant: str, ref: str, in_use: InUse, lent: Lent) -> list[str]:
    """Delete a version (NAME@VERSION, NAME:ALIAS) or all of a model (NAME).

    Returns the blob keys that no row points at any more: delete those once this transaction has
    been committed. `in_use(tx, tenant, version)` names the tenant's endpoints that need one,
    `lent(...)` says whether others' do.
    Raises TapsterError(conflict), and deletes nothing, when one does.
    """
    _, version, alias = parse(ref)
    one = bool(version or alias)
    doomed = [resolve(tx, tenant, ref)] if one else versions(tx, tenant, ref)
    for item in doomed:
        if endpoints := in_use(tx, tenant, item):
            raise TapsterError(
                "conflict",
                f"{item.model}@{item.version} is served by endpoint {', '.join(endpoints[:5])}",
                hint=f"deploy another version there, or `tapster endpoints delete {endpoints[0]}`",
            )
        if lent(tx, tenant, item):
            raise TapsterError(
                "conflict",
                f"{item.model}@{item.version} is served by another tenant's endpoint",
                hint=f"they stop with: tapster models withdraw {item.model}",
            )
    for item in doomed:
        store.remove(tx, tenant, item.model, item.version)
    if not store.of_model(tx, tenant, doomed[0].model):
        shares.forget(tx, shares.MODEL, tenant, doomed[0].model)
    digests = {item.digest for item in doomed}
    gone = sorted(digest for digest in digests if not store.of_digest(tx, tenant, digest))
    if gone and store.elsewhere(tx, tenant, gone):
        # Plans name a package once, perhaps by the key under which it lies no longer.
        tenancy.revise(tx, tenant, f"packages of {doomed[0].model} deleted")
    return [packages.key_of(tenant, digest) for digest in gone]


def blob_keys(tx: Connection) -> set[str]:
    """Keys of every package that any tenant's row points at."""
    return {packages.key_of(tenant, digest) for tenant, digest in store.packages(tx)}


def stored(tx: Connection, tenant: str = "") -> dict[str, int]:
    """Bytes of packages by tenant, of every tenant that has any, or of `tenant`."""
    return store.stored(tx, tenant)


def trusted(tx: Connection, tenant: str) -> set[str]:
    """Public keys whose packages may be served: those trusted now, and those that were when

    something that is still registered was imported.
    """
    return {key["public_key"] for key in store.keys(tx, tenant)} | store.signers(tx, tenant)


# -- the job "model.import"


def submit_import(tx: Connection, tenant: str, model: str, upload: str, own_key: str) -> Job:
    """Queue the import of an uploaded package or model as the next version of `model`."""
    check_name(model)
    spec = {"model": model, "upload": upload, "own_key": own_key}
    return jobs.submit(tx, tenant, kind="model.import", spec=spec)


def load_import(tx: Connection, job: Job) -> dict[str, Any]:
    """See Handler: the file, whose signature is good for it, whether it may be Python code."""
    known = {key["public_key"] for key in store.keys(tx, job.tenant)}
    return {
        "task": {
            "model": job.spec["model"],
            "code": job.tenant == DEFAULT_TENANT,
            "trusted": sorted(known | {job.spec["own_key"]}),
        },
        "blobs": {},
        "uploads": {"file": job.spec["upload"]},
    }


def publish_import(parts: Parts, job: Job, result: dict[str, Any], out: Path) -> dict[str, Any]:
    """See Handler: check the signature again, out of the importing process's reach, and store."""
    trusted_now: set[str] | None = None
    if result["signed"]:
        with parts.db.read() as tx:
            trusted_now = {key["public_key"] for key in store.keys(tx, job.tenant)}
        trusted_now.add(parts.signer.public)
    package = packages.publish(parts, job.tenant, out / "package", trusted_now)
    return {**result, "package": {**package, "unvetted": result["unvetted"]}}


def apply_import(tx: Connection, job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """See Handler: register the version."""
    model = str(job.spec["model"])
    made = register_published(tx, job, model, result["package"], trained_here=False)
    return {
        "model": made.model,
        "version": made.version,
        "digest": made.digest,
        "signer": made.signer,
        "unvetted": made.unvetted,
    }


HANDLERS: Final[dict[str, Handler]] = {
    "model.import": Handler(
        run="tapster.registry.importing:run",
        load=load_import,
        publish=publish_import,
        apply=apply_import,
    )
}


def check_name(name: str, what: str = "a model") -> None:
    """Raise TapsterError(invalid) unless `name` may name `what`."""
    if not NAME.fullmatch(name):
        raise TapsterError(
            "invalid",
            f"{name[:100]!r} cannot be the name of {what}",
            hint="use up to 100 letters, digits, dots, dashes and underscores",
            field="name",
        )


def _refs(found: Sequence[ModelVersion]) -> list[str]:
    return [f"{item.model}@{item.version}" for item in found]


def _no_model(tx: Connection, tenant: str, model: str) -> TapsterError:
    several = shares.meant(tx, shares.MODEL, tenant, model)
    if len(several) == 1:
        return TapsterError(
            "forbidden",
            f"the model {model} is another tenant's, which shares it",
            hint="it can be looked at and deployed; the rest is for its owner",
        )
    if several:
        names = " or ".join(shares.full(*each) for each in several[:8])
        return TapsterError(
            "not_found",
            f"there is no model {model!r}",
            hint=f"several are shared under this name: say {names}",
        )
    close = difflib.get_close_matches(model, store.names(tx, tenant), n=1)
    hint = f"did you mean {close[0]}?" if close else "see `tapster models list`"
    return TapsterError("not_found", f"there is no model {model!r}", hint=hint)


def _no_alias(
    tx: Connection, tenant: str, model: str, alias: str, otherwise: str = ""
) -> TapsterError:
    known = ", ".join(store.aliases(tx, tenant, model))
    hint = otherwise or f"`tapster models alias {model} {alias}`"
    hint = f"its aliases are: {known}" if known else hint
    return TapsterError("not_found", f"model {model} has no alias {alias[:100]!r}", hint=hint)


def _check_length(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise TapsterError(
            "invalid", f"the {what} is longer than {limit} characters", field=what.partition(" ")[0]
        )
