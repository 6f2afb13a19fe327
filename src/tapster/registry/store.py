"""The tables of model versions, aliases and trusted keys, and all SQL over them."""

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
    Select,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from tapster.contract.control import ModelVersion
from tapster.core.db import metadata

# One row a name that was ever used, so that no version number is given out twice.
models = Table(
    "models",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("model", String(100), primary_key=True),
    Column("last_version", Integer, nullable=False),
)

versions = Table(
    "model_versions",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("model", String(100), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("task", String(32), nullable=False),
    Column("runtime", String(100), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("lineage", JSON, nullable=False),
    Column("signature", JSON, nullable=False),
    Column("unvetted", JSON, nullable=False),
    Column("signer", String(64), nullable=False),
    Column("description", Text, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("dataset", String(100), nullable=False),
    Column("dataset_version", Integer, nullable=False),
    Column("dataset_digest", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("job", String(32), nullable=False),
    Index("ix_model_versions_digest", "tenant", "digest"),
    Index("ix_model_versions_dataset", "tenant", "dataset", "dataset_version"),
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("model", String(100), primary_key=True),
    Column("alias", String(100), primary_key=True),
    Column("version", Integer, nullable=False),
)

trusted_keys = Table(
    "trusted_keys",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("public_key", String(64), nullable=False),
    Column("created", Float, nullable=False),
)

_INTERNAL = {"tenant", "dataset", "dataset_version", "dataset_digest"}
_SHOWN = [column for column in versions.c if column.name not in _INTERNAL]


def add(tx: Connection, tenant: str, model: str, **values: Any) -> int:
    """Insert the next version of a model; returns its number."""
    here = (models.c.tenant == tenant, models.c.model == model)
    raised = update(models).where(*here).values(last_version=models.c.last_version + 1)
    if tx.execute(raised).rowcount == 0:
        tx.execute(insert(models).values(tenant=tenant, model=model, last_version=1))
    number = int(tx.execute(select(models.c.last_version).where(*here)).scalar_one())
    tx.execute(
        insert(versions).values(
            tenant=tenant,
            model=model,
            version=number,
            description="",
            tags={},
            created=time.time(),
            **values,
        )
    )
    return number


def get(tx: Connection, tenant: str, model: str, version: int) -> ModelVersion | None:
    """One version."""
    found = _fetch(
        tx,
        tenant,
        select(*_SHOWN).where(
            versions.c.tenant == tenant, versions.c.model == model, versions.c.version == version
        ),
    )
    return found[0] if found else None


def of_digest(tx: Connection, tenant: str, digest: str) -> list[ModelVersion]:
    """All versions, of any model, that are this package."""
    query = select(*_SHOWN).where(versions.c.tenant == tenant, versions.c.digest == digest)
    return _fetch(tx, tenant, query.order_by(versions.c.model, versions.c.version))


def newest(tx: Connection, tenant: str) -> list[ModelVersion]:
    """The newest version of each model, by name."""
    last = (
        select(versions.c.model, func.max(versions.c.version).label("version"))
        .where(versions.c.tenant == tenant)
        .group_by(versions.c.model)
        .subquery()
    )
    query = (
        select(*_SHOWN)
        .join(last, (versions.c.model == last.c.model) & (versions.c.version == last.c.version))
        .where(versions.c.tenant == tenant)
        .order_by(versions.c.model)
    )
    return _fetch(tx, tenant, query)


def of_model(tx: Connection, tenant: str, model: str) -> list[ModelVersion]:
    """All versions of a model, newest first."""
    query = select(*_SHOWN).where(versions.c.tenant == tenant, versions.c.model == model)
    return _fetch(tx, tenant, query.order_by(versions.c.version.desc()))


def of_dataset(tx: Connection, tenant: str, dataset: str, version: int) -> list[ModelVersion]:
    """Versions trained on a dataset, or with `version` > 0 on that version of it."""
    query = select(*_SHOWN).where(versions.c.tenant == tenant, versions.c.dataset == dataset)
    if version:
        query = query.where(versions.c.dataset_version == version)
    return _fetch(tx, tenant, query.order_by(versions.c.model, versions.c.version))


def of_data_digest(tx: Connection, tenant: str, digest: str) -> list[ModelVersion]:
    """Versions trained on a table of this digest, wherever they were trained."""
    query = select(*_SHOWN).where(versions.c.tenant == tenant, versions.c.dataset_digest == digest)
    return _fetch(tx, tenant, query.order_by(versions.c.model, versions.c.version))


def of_parent(tx: Connection, tenant: str, digest: str) -> list[ModelVersion]:
    """Versions that were made from a package."""
    parent = versions.c.lineage["parent"].as_string()
    query = select(*_SHOWN).where(versions.c.tenant == tenant, parent == digest)
    return _fetch(tx, tenant, query.order_by(versions.c.model, versions.c.version))


def change(tx: Connection, tenant: str, model: str, version: int, **values: Any) -> None:
    """Change what may change: description and tags."""
    tx.execute(
        update(versions)
        .where(
            versions.c.tenant == tenant, versions.c.model == model, versions.c.version == version
        )
        .values(**values)
    )


def remove(tx: Connection, tenant: str, model: str, version: int) -> None:
    """Delete a version and the aliases that point at it."""
    for table in (versions, model_aliases):
        tx.execute(
            delete(table).where(
                table.c.tenant == tenant, table.c.model == model, table.c.version == version
            )
        )


def names(tx: Connection, tenant: str) -> list[str]:
    """Names of the models that have versions."""
    query = select(versions.c.model).where(versions.c.tenant == tenant).distinct()
    return list(tx.execute(query.order_by(versions.c.model)).scalars())


def aliases(tx: Connection, tenant: str, model: str) -> dict[str, int]:
    """A model's aliases: alias -> version."""
    query = select(model_aliases.c.alias, model_aliases.c.version).where(
        model_aliases.c.tenant == tenant, model_aliases.c.model == model
    )
    return {row.alias: row.version for row in tx.execute(query.order_by(model_aliases.c.alias))}


def set_alias(tx: Connection, tenant: str, model: str, alias: str, version: int) -> None:
    """Point an alias at a version."""
    here = (
        model_aliases.c.tenant == tenant,
        model_aliases.c.model == model,
        model_aliases.c.alias == alias,
    )
    if tx.execute(update(model_aliases).where(*here).values(version=version)).rowcount == 0:
        tx.execute(
            insert(model_aliases).values(tenant=tenant, model=model, alias=alias, version=version)
        )


def unset_alias(tx: Connection, tenant: str, model: str, alias: str) -> bool:
    """Remove an alias; False if there was none."""
    gone = tx.execute(
        delete(model_aliases).where(
            model_aliases.c.tenant == tenant,
            model_aliases.c.model == model,
            model_aliases.c.alias == alias,
        )
    )
    return gone.rowcount > 0


def keys(tx: Connection, tenant: str) -> list[dict[str, Any]]:
    """Trusted keys by name: {"name", "public_key", "created"}."""
    query = select(trusted_keys.c.name, trusted_keys.c.public_key, trusted_keys.c.created).where(
        trusted_keys.c.tenant == tenant
    )
    return [dict(row) for row in tx.execute(query.order_by(trusted_keys.c.name)).mappings()]


def add_key(tx: Connection, tenant: str, name: str, public_key: str) -> None:
    """Trust a key."""
    tx.execute(
        insert(trusted_keys).values(
            tenant=tenant, name=name, public_key=public_key, created=time.time()
        )
    )


def remove_key(tx: Connection, tenant: str, name: str) -> bool:
    """Trust a key no longer; False if there was none of that name."""
    gone = tx.execute(
        delete(trusted_keys).where(trusted_keys.c.tenant == tenant, trusted_keys.c.name == name)
    )
    return gone.rowcount > 0


def signers(tx: Connection, tenant: str) -> set[str]:
    """Keys that signed what is registered."""
    query = select(versions.c.signer).where(versions.c.tenant == tenant).distinct()
    return set(tx.execute(query).scalars())


def packages(tx: Connection) -> set[tuple[str, str]]:
    """(tenant, digest) of every package of every tenant, for the sweep at start-up."""
    query = select(versions.c.tenant, versions.c.digest).distinct()
    return {(row.tenant, row.digest) for row in tx.execute(query)}


def elsewhere(tx: Connection, tenant: str, digests: Iterable[str]) -> bool:
    """Whether any tenant but this one has one of these packages too."""
    query = select(versions.c.digest).where(
        versions.c.tenant != tenant, versions.c.digest.in_(list(digests))
    )
    return tx.execute(query.limit(1)).first() is not None


def stored(tx: Connection, tenant: str = "") -> dict[str, int]:
    """Bytes of all tenants' packages, by tenant; of those with several names once."""
    each = select(versions.c.tenant, versions.c.digest, func.max(versions.c.bytes).label("bytes"))
    if tenant:
        each = each.where(versions.c.tenant == tenant)
    once = each.group_by(versions.c.tenant, versions.c.digest).subquery()
    query = select(once.c.tenant, func.sum(once.c.bytes)).group_by(once.c.tenant)
    return {tenant: int(size) for tenant, size in tx.execute(query)}


def _fetch(tx: Connection, tenant: str, query: Select[Any]) -> list[ModelVersion]:
    rows = [dict(row) for row in tx.execute(query).mappings()]
    known = {model: aliases(tx, tenant, model) for model in {row["model"] for row in rows}}
    return [
        ModelVersion(
            **row,
            aliases=[a for a, version in known[row["model"]].items() if version == row["version"]],
        )
        for row in rows
    ]
