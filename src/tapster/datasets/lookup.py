"""Versions and splits by name, where their files lie, and where they come from."""

import difflib
from typing import Any

from sqlalchemy import Connection

from tapster.contract.control import DatasetVersion, Split
from tapster.contract.errors import TapsterError
from tapster.datasets import store
from tapster.datasets.columns import shown


def dataset_key(tenant: str, digest: str) -> str:
    """Where a version's files lie: data.parquet, profile.json, associations.npz."""
    return f"{tenant}/datasets/{digest}"


def split_key(tenant: str, digest: str) -> str:
    """Where a split's file lies: split.parquet, one uint8 column `part` (0, 1, 2)."""
    return f"{tenant}/splits/{digest}"


def listing(tx: Connection, tenant: str) -> list[DatasetVersion]:
    """The newest version of each dataset."""
    return store.newest(tx, tenant)


def resolve(tx: Connection, tenant: str, ref: str) -> DatasetVersion:
    """The version that NAME (its newest) or NAME@VERSION names. Raises TapsterError(not_found)."""
    name, number = parse_ref(ref)
    found = store.get(tx, tenant, name, number)
    if found is None:
        raise unknown(tx, tenant, name, number)
    return found


def versions(tx: Connection, tenant: str, ref: str) -> list[DatasetVersion]:
    """Every version of a dataset, newest first."""
    return store.of_name(tx, tenant, resolve(tx, tenant, ref).name)


def splits(tx: Connection, tenant: str, ref: str) -> list[Split]:
    """The splits of a version."""
    version = resolve(tx, tenant, ref)
    return store.split_list(tx, tenant, version.name, version.version)


def find_split(tx: Connection, tenant: str, ref: str, name: str) -> tuple[Split, str]:
    """A split of a version and its blob's key. Raises TapsterError(not_found)."""
    version = resolve(tx, tenant, ref)
    found = store.split_list(tx, tenant, version.name, version.version)
    digests = store.split_digests(tx, tenant, version.name, [version.version])
    for candidate in found:
        if candidate.name == name:
            return candidate, split_key(tenant, digests[version.version, name])
    raise TapsterError(
        "not_found",
        f"{version.name}@{version.version} has no split {shown(name)}",
        hint="its splits are "
        + (", ".join(s.name for s in found) or "none yet")
        + "; make one with `tapster data split`",
        field="split",
    )


def lineage(tx: Connection, tenant: str, ref: str) -> dict[str, Any]:
    """Where a version comes from, step by step, and what was made from it.

    {"dataset", "version", "digest", "source", "parents": [the same, for each parent],
    "children": [{"dataset", "version", "digest"}]}.
    """
    version = resolve(tx, tenant, ref)
    every = store.everything(tx, tenant)
    tree = _ancestry(version, {(v.name, v.version): v for v in every})
    me = {"dataset": version.name, "version": version.version}
    tree["children"] = [
        {"dataset": v.name, "version": v.version, "digest": v.digest}
        for v in every
        if any(me.items() <= parent.items() for parent in v.parents)
    ]
    return tree


def _ancestry(
    version: DatasetVersion, known: dict[tuple[str, int], DatasetVersion]
) -> dict[str, Any]:
    parents = []
    for parent in version.parents:
        found = known.get((parent["dataset"], parent["version"]))
        parents.append(_ancestry(found, known) if found else {**parent, "deleted": True})
    return {
        "dataset": version.name,
        "version": version.version,
        "digest": version.digest,
        "source": version.source,
        "parents": parents,
    }


def parse_ref(ref: str) -> tuple[str, int | None]:
    """NAME or NAME@VERSION, taken apart. Raises TapsterError(invalid)."""
    name, at, number = ref.partition("@")
    if at and not (number.isascii() and number.isdigit() and len(number) < 10):
        raise TapsterError(
            "invalid",
            f"{shown(ref)} is not NAME or NAME@VERSION",
            hint="a version is a number",
            field="dataset",
        )
    return name, int(number) if at else None


def unknown(tx: Connection, tenant: str, name: str, number: int | None) -> TapsterError:
    """The error for a version that is not there, with what is."""
    known = store.names(tx, tenant)
    if name in known:
        numbers = sorted(v.version for v in store.of_name(tx, tenant, name))
        return TapsterError(
            "not_found",
            f"dataset {name} has no version {number}",
            hint="its versions are " + ", ".join(str(n) for n in numbers[-10:]),
            field="dataset",
        )
    close = difflib.get_close_matches(name, known, n=3)
    return TapsterError(
        "not_found",
        f"there is no dataset {shown(name)}",
        hint=f"did you mean {', '.join(close)}?" if close else "see `tapster data list`",
        field="dataset",
    )
