"""Datasets as their owners see them: import, clean, split, show, delete."""

import re
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Job
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts, TenantKeys
from tapster.datasets import declarations, locations, store
from tapster.datasets.columns import FORMATS, INFINITIES, check_schema, shown, unknown_column
from tapster.datasets.lookup import (
    dataset_key,
    find_split,
    lineage,
    listing,
    parse_ref,
    resolve,
    split_key,
    splits,
    unknown,
    versions,
)
from tapster.datasets.work import HANDLERS, check_split_free
from tapster.jobs import confidential
from tapster.jobs import service as jobs

__all__ = [
    "HANDLERS",
    "blob_keys",
    "check_import",
    "dataset_key",
    "delete",
    "find_split",
    "lineage",
    "listing",
    "resolve",
    "split_key",
    "splits",
    "submit_clean",
    "submit_import",
    "submit_split",
    "versions",
]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_import(spec: dict[str, Any], home: Path, tenant: str = DEFAULT_TENANT) -> dict[str, Any]:
    """A request to import, checked as far as it can be without a transaction.

    `spec` has name, upload, url, table, query, schema, format, infinities; `tenant` is whom the
    caller belongs to. Raises TapsterError.
    """
    check_name(spec["name"])
    if bool(spec["upload"]) == bool(spec["url"]):
        raise TapsterError(
            "invalid",
            "an import needs either an upload or a url",
            hint="send a file, or give sqlite://, postgresql:// or s3://",
            field="url",
        )
    check_schema(spec["schema"])
    _check_choice("format", spec["format"], ("", *FORMATS))
    _check_choice("infinities", spec["infinities"], INFINITIES)
    if spec["url"]:
        locations.check_url(spec["url"], spec["table"], spec["query"])
        if tenant != DEFAULT_TENANT:
            locations.check_stranger(spec["url"])
        if spec["url"].startswith("sqlite:"):
            path = locations.sqlite_path(spec["url"], home)
            return {**spec, "url": f"sqlite:///{path}"}
    elif spec["table"] or spec["query"]:
        raise TapsterError(
            "invalid", "table and query are for databases", hint="drop them", field="table"
        )
    return spec


def submit_import(
    tx: Connection, tenant: str, spec: dict[str, Any], keys: TenantKeys | None = None
) -> Job:
    """Queue the import of a checked request. A password in its URL is kept out of the job."""
    url = spec["url"]
    shown_url = locations.masked(url) if url else ""
    job = jobs.submit(tx, tenant, kind="dataset.import", spec={**spec, "url": shown_url})
    if shown_url != url:
        confidential.keep(tx, keys, tenant, job.id, {"url": url})
    return job


def submit_clean(tx: Connection, tenant: str, ref: str, recipe: dict[str, Any]) -> Job:
    """Queue a recipe over a version; the result is the dataset's next version."""
    version = resolve(tx, tenant, ref)
    declarations.check(recipe, version.columns)
    spec = {"name": version.name, "version": version.version, "recipe": recipe}
    return jobs.submit(tx, tenant, kind="dataset.clean", spec=spec)


def submit_split(
    tx: Connection,
    tenant: str,
    ref: str,
    *,
    name: str,
    kind: str,
    fractions: list[float],
    seed: int,
    column: str,
) -> Job:
    """Queue the division of a version's rows. Raises TapsterError for what cannot be done."""
    version = resolve(tx, tenant, ref)
    check_name(name)
    declarations.check_split(kind, fractions, seed, column)
    known = [item["name"] for item in version.columns]
    if column and column not in known:
        raise unknown_column(column, known, "column")
    spec = {
        "dataset": version.name,
        "version": version.version,
        "name": name,
        "kind": kind,
        "fractions": fractions,
        "seed": seed,
        "column": column,
    }
    check_split_free(tx, tenant, spec)
    return jobs.submit(tx, tenant, kind="dataset.split", spec=spec)


def delete(parts: Parts, tenant: str, ref: str) -> int:
    """Remove a version, or every version of a bare NAME, with its splits; returns bytes freed.

    Opens its own transaction, because the storage is freed after it. Content that another
    dataset shares stays, and then frees nothing.
    """
    name, number = parse_ref(ref)
    with parts.db.write() as tx:
        chosen = [v for v in store.of_name(tx, tenant, name) if number in {None, v.version}]
        if not chosen:
            raise unknown(tx, tenant, name, number)
        numbers = [version.version for version in chosen]
        keys = {dataset_key(tenant, version.digest) for version in chosen}
        found = store.split_digests(tx, tenant, name, numbers)
        keys |= {split_key(tenant, digest) for digest in found.values()}
        store.remove_versions(tx, tenant, name, numbers)
        keys -= keys_in_use(tx, tenant)
    return sum(parts.blobs.delete(key) for key in sorted(keys))


def keys_in_use(tx: Connection, tenant: str) -> set[str]:
    """Keys of the blobs that a row points at."""
    of_versions, of_splits = store.digests_in_use(tx, tenant)
    keys = {dataset_key(tenant, digest) for digest in of_versions}
    keys |= {split_key(tenant, digest) for digest in of_splits}
    return keys


def blob_keys(tx: Connection) -> set[str]:
    """Keys of every blob that any tenant's row points at."""
    return {
        key_of(tenant, digest)
        for key_of, found in ((dataset_key, store.all_versions), (split_key, store.all_splits))
        for tenant, digest in found(tx)
    }


def stored(tx: Connection, tenant: str = "") -> dict[str, int]:
    """Bytes of datasets by tenant, of every tenant that has any, or of `tenant`."""
    return store.stored(tx, tenant)


def check_name(name: str) -> None:
    """Raise TapsterError(invalid) unless a dataset or split may be called so."""
    if not _NAME.fullmatch(name):
        raise TapsterError(
            "invalid",
            f"{shown(name)} cannot be a name",
            hint="use 1 to 100 letters, digits, dots, underscores and hyphens, "
            "the first a letter or digit",
            field="name",
        )


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise TapsterError(
            "invalid",
            f"{field} {shown(value)} is unknown",
            hint="choose one of: " + ", ".join(choice for choice in choices if choice),
            field=field,
        )
