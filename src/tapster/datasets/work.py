"""What the claim loop calls for imports, recipes and splits: load, publish, apply."""

from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import DatasetVersion, Job
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.datasets import store
from tapster.datasets.columns import shown
from tapster.datasets.lookup import dataset_key, resolve, split_key
from tapster.jobs.service import Handler


def load_import(tx: Connection, job: Job) -> dict[str, Any]:
    """What the import's process gets; its URL with the password is kept apart."""
    uploads = {"upload": job.spec["upload"]} if job.spec["upload"] else {}
    return {"task": dict(job.spec), "blobs": {}, "uploads": uploads}


def publish_import(parts: Parts, job: Job, result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Store the new version's files."""
    key = dataset_key(job.tenant, result["digest"])
    return {**result, "bytes": parts.blobs.put(key, out / "dataset")}


def apply_import(tx: Connection, job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Register the version, or find that it is registered already."""
    return _register(tx, job, result, [])


def _register(
    tx: Connection, job: Job, result: dict[str, Any], parents: list[dict[str, Any]]
) -> dict[str, Any]:
    name, digest = str(job.spec["name"]), str(result["digest"])
    known = store.get(tx, job.tenant, name, digest=digest)
    if known is None:
        number = store.add_version(
            tx,
            job.tenant,
            name,
            parents=parents,
            job=job.id,
            **{k: result[k] for k in ("digest", "rows", "bytes", "columns", "source")},
        )
    return {
        "dataset": name,
        "version": known.version if known else number,
        "digest": digest,
        "rows": result["rows"],
        "columns": len(result["columns"]),
        "known": known is not None,
    }


def load_clean(tx: Connection, job: Job) -> dict[str, Any]:
    """What the recipe's process gets."""
    version = _spec_version(tx, job)
    task = {"recipe": job.spec["recipe"], "digest": version.digest}
    return {"task": task, "blobs": {"dataset": dataset_key(job.tenant, version.digest)}}


publish_clean = publish_import


def apply_clean(tx: Connection, job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Register the version that the recipe made."""
    parent = {
        "dataset": job.spec["name"],
        "version": job.spec["version"],
        "digest": result["parent"],
    }
    return _register(tx, job, result, [parent])


def load_split(tx: Connection, job: Job) -> dict[str, Any]:
    """What the split's process gets."""
    ref = f"{job.spec['dataset']}@{job.spec['version']}"
    version = resolve(tx, job.tenant, ref)
    task = {**job.spec, "digest": version.digest}
    return {"task": task, "blobs": {"dataset": dataset_key(job.tenant, version.digest)}}


def publish_split(parts: Parts, job: Job, result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Store the split's file."""
    key = split_key(job.tenant, result["digest"])
    return {**result, "bytes": parts.blobs.put(key, out / "split")}


def apply_split(tx: Connection, job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Register the split, or find that it is registered already."""
    resolve(tx, job.tenant, f"{job.spec['dataset']}@{job.spec['version']}")
    fields = ("dataset", "version", "name", "kind", "fractions", "seed", "column")
    if not check_split_free(tx, job.tenant, job.spec):
        values = {field: job.spec[field] for field in fields}
        store.add_split(tx, job.tenant, digest=result["digest"], rows=result["rows"], **values)
    return {**{field: job.spec[field] for field in fields}, "rows": result["rows"]}


def check_split_free(tx: Connection, tenant: str, spec: dict[str, Any]) -> bool:
    """Whether the very same split exists. Raises TapsterError(conflict) if another has its name."""
    for known in store.split_list(tx, tenant, spec["dataset"], spec["version"]):
        if known.name != spec["name"]:
            continue
        fields = ("kind", "fractions", "seed", "column")
        if all(getattr(known, field) == spec[field] for field in fields):
            return True
        raise TapsterError(
            "conflict",
            f"{spec['dataset']}@{spec['version']} has another split named {shown(known.name)}",
            hint="splits do not change once made; choose another name",
            field="name",
        )
    return False


def _spec_version(tx: Connection, job: Job) -> DatasetVersion:
    return resolve(tx, job.tenant, f"{job.spec['name']}@{job.spec['version']}")


HANDLERS: Final[dict[str, Handler]] = {
    "dataset.import": Handler(
        "tapster.datasets.importing:run", load_import, publish_import, apply_import
    ),
    "dataset.clean": Handler(
        "tapster.datasets.cleaning:run", load_clean, publish_clean, apply_clean
    ),
    "dataset.split": Handler(
        "tapster.datasets.splitting:run", load_split, publish_split, apply_split
    ),
}
