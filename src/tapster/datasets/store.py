"""The tables of datasets and all SQL over them."""

import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    insert,
    select,
    update,
)

from tapster.contract.control import DatasetVersion, Split
from tapster.core.db import metadata

# `newest` only grows, so that a version's number is never used again.
datasets = Table(
    "datasets",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("newest", Integer, nullable=False),
    Column("created", Float, nullable=False),
)

versions = Table(
    "dataset_versions",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("columns", JSON, nullable=False),
    Column("source", JSON, nullable=False),
    Column("parents", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("job", String(32), nullable=False),
    UniqueConstraint("tenant", "name", "digest", name="uq_dataset_versions_digest"),
    Index("ix_dataset_versions_digest", "tenant", "digest"),
)

splits = Table(
    "dataset_splits",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("dataset", String(100), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("fractions", JSON, nullable=False),
    Column("column", String(256), nullable=False),
    Column("rows", JSON, nullable=False),
    Column("created", Float, nullable=False),
)

_VERSION = [column for column in versions.c if column.name != "tenant"]
_SPLIT = [column for column in splits.c if column.name not in {"tenant", "digest"}]


def newest(tx: Connection, tenant: str) -> list[DatasetVersion]:
    """The newest version of each dataset, by name."""
    last = (
        select(versions.c.name, func.max(versions.c.version).label("version"))
        .where(versions.c.tenant == tenant)
        .group_by(versions.c.name)
        .subquery()
    )
    query = (
        select(*_VERSION)
        .join(last, (versions.c.name == last.c.name) & (versions.c.version == last.c.version))
        .where(versions.c.tenant == tenant)
        .order_by(versions.c.name)
    )
    return [DatasetVersion(**row) for row in tx.execute(query).mappings()]


def of_name(tx: Connection, tenant: str, name: str) -> list[DatasetVersion]:
    """Every version of a dataset, newest first."""
    query = (
        select(*_VERSION)
        .where(versions.c.tenant == tenant, versions.c.name == name)
        .order_by(versions.c.version.desc())
    )
    return [DatasetVersion(**row) for row in tx.execute(query).mappings()]


def get(
    tx: Connection, tenant: str, name: str, version: int | None = None, digest: str = ""
) -> DatasetVersion | None:
    """One version of a dataset: by number, by digest, or the newest."""
    query = select(*_VERSION).where(versions.c.tenant == tenant, versions.c.name == name)
    if version is not None:
        query = query.where(versions.c.version == version)
    if digest:
        query = query.where(versions.c.digest == digest)
    row = tx.execute(query.order_by(versions.c.version.desc()).limit(1)).mappings().first()
    return DatasetVersion(**row) if row else None


def names(tx: Connection, tenant: str) -> list[str]:
    """Names of the datasets that have a version."""
    query = select(versions.c.name).where(versions.c.tenant == tenant).distinct()
    return sorted(tx.execute(query).scalars())


def everything(tx: Connection, tenant: str) -> list[DatasetVersion]:
    """Every version of every dataset."""
    query = select(*_VERSION).where(versions.c.tenant == tenant)
    query = query.order_by(versions.c.created, versions.c.name, versions.c.version)
    return [DatasetVersion(**row) for row in tx.execute(query).mappings()]


def add_version(tx: Connection, tenant: str, name: str, **values: Any) -> int:
    """Insert the next version of a dataset; returns its number."""
    here = (datasets.c.tenant == tenant, datasets.c.name == name)
    row = tx.execute(select(datasets.c.newest).where(*here).with_for_update()).first()
    number = (row.newest if row else 0) + 1
    if row:
        tx.execute(update(datasets).where(*here).values(newest=number))
    else:
        tx.execute(insert(datasets).values(tenant=tenant, name=name, newest=1, created=time.time()))
    tx.execute(
        insert(versions).values(
            tenant=tenant, name=name, version=number, created=time.time(), **values
        )
    )
    return number


def remove_versions(tx: Connection, tenant: str, name: str, numbers: Iterable[int]) -> None:
    """Delete versions and their splits."""
    chosen = list(numbers)
    tx.execute(
        delete(splits).where(
            splits.c.tenant == tenant, splits.c.dataset == name, splits.c.version.in_(chosen)
        )
    )
    tx.execute(
        delete(versions).where(
            versions.c.tenant == tenant, versions.c.name == name, versions.c.version.in_(chosen)
        )
    )


def digests_in_use(tx: Connection, tenant: str) -> tuple[set[str], set[str]]:
    """Digests of the versions and of the splits that rows still point at."""
    of_versions = tx.execute(select(versions.c.digest).where(versions.c.tenant == tenant))
    of_splits = tx.execute(select(splits.c.digest).where(splits.c.tenant == tenant))
    return set(of_versions.scalars()), set(of_splits.scalars())


def all_versions(tx: Connection) -> list[tuple[str, str]]:
    """(tenant, digest) of every tenant's versions."""
    query = select(versions.c.tenant, versions.c.digest).distinct()
    return [(row.tenant, row.digest) for row in tx.execute(query)]


def stored(tx: Connection, tenant: str = "") -> dict[str, int]:
    """Bytes of all tenants' versions, by tenant; of what has several names once."""
    each = select(versions.c.tenant, versions.c.digest, func.max(versions.c.bytes).label("bytes"))
    if tenant:
        each = each.where(versions.c.tenant == tenant)
    once = each.group_by(versions.c.tenant, versions.c.digest).subquery()
    query = select(once.c.tenant, func.sum(once.c.bytes)).group_by(once.c.tenant)
    return {tenant: int(size) for tenant, size in tx.execute(query)}


def all_splits(tx: Connection) -> list[tuple[str, str]]:
    """(tenant, digest) of every tenant's splits."""
    query = select(splits.c.tenant, splits.c.digest).distinct()
    return [(row.tenant, row.digest) for row in tx.execute(query)]


def split_list(tx: Connection, tenant: str, name: str, version: int) -> list[Split]:
    """The splits of a version, by name."""
    query = select(*_SPLIT).where(
        splits.c.tenant == tenant, splits.c.dataset == name, splits.c.version == version
    )
    return [Split(**row) for row in tx.execute(query.order_by(splits.c.name)).mappings()]


def split_digests(
    tx: Connection, tenant: str, name: str, numbers: Iterable[int]
) -> dict[tuple[int, str], str]:
    """Digest by (version, split name)."""
    query = select(splits.c.version, splits.c.name, splits.c.digest).where(
        splits.c.tenant == tenant, splits.c.dataset == name, splits.c.version.in_(list(numbers))
    )
    return {(row.version, row.name): row.digest for row in tx.execute(query)}


def add_split(tx: Connection, tenant: str, **values: Any) -> None:
    """Insert a split."""
    tx.execute(insert(splits).values(tenant=tenant, created=time.time(), **values))
