"""Datasets over HTTP."""

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, Query, Response
from pydantic import ConfigDict

from tapster.contract.control import DatasetVersion, Job, Principal, Split
from tapster.core.parts import Parts
from tapster.datasets import associations, service
from tapster.tenancy.access import need
from tapster.tenancy.limits import storage

_Reader = Annotated[Principal, Depends(need("datasets:read"))]
_Writer = Annotated[Principal, Depends(need("datasets:write"))]
_STRICT = ConfigDict(extra="forbid")


@dataclass
class ImportRequest:
    """An upload's id, or a URL with a table or a query; `schema` is {column: type}."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    upload: str = ""
    url: str = ""
    table: str = ""
    query: str = ""
    schema: dict[str, str] = field(default_factory=dict)
    format: str = ""
    infinities: str = "refuse"


@dataclass
class CleanRequest:
    """A recipe: {"steps": [{"op": ..., ...}]}."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    recipe: dict[str, Any]


@dataclass
class SplitRequest:
    """`kind` is random, stratified, time or group; the last three need a column."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str = "default"
    kind: str = "random"
    fractions: list[float] = field(default_factory=lambda: [0.7, 0.15, 0.15])
    seed: int = 0
    column: str = ""


@dataclass(frozen=True)
class Freed:
    """Bytes that a deletion gave back."""

    freed: int


def routes(parts: Parts) -> APIRouter:
    """The routes under /datasets."""
    router = APIRouter(prefix="/datasets", tags=["datasets"])
    _reading(router, parts)
    _writing(router, parts)
    return router


def _reading(router: APIRouter, parts: Parts) -> None:
    @router.get("")
    def list_datasets(who: _Reader) -> list[DatasetVersion]:
        """The newest version of each dataset."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant)

    @router.get("/{ref}")
    def show_dataset(ref: str, who: _Reader) -> DatasetVersion:
        """One version: NAME (its newest) or NAME@VERSION."""
        with parts.db.read() as tx:
            return service.resolve(tx, who.tenant, ref)

    @router.get("/{ref}/versions")
    def list_versions(ref: str, who: _Reader) -> list[DatasetVersion]:
        """Every version of a dataset, newest first."""
        with parts.db.read() as tx:
            return service.versions(tx, who.tenant, ref)

    @router.get("/{ref}/profile", response_model=dict[str, Any])
    def show_profile(
        ref: str, who: _Reader, target: Annotated[str | None, Query()] = None
    ) -> Response:
        """What is in a version; with `target`, how its columns go together with that one."""
        with parts.db.read() as tx:
            version = service.resolve(tx, who.tenant, ref)
        folder = parts.blobs.get(service.dataset_key(who.tenant, version.digest))
        body = (folder / "profile.json").read_bytes()
        if target is not None:
            profile = json.loads(body)
            path = folder / "associations.npz"
            profile["target"] = associations.with_target(path, profile, target)
            body = json.dumps(profile, ensure_ascii=False).encode()
        return Response(body, media_type="application/json")

    @router.get("/{ref}/lineage")
    def show_lineage(ref: str, who: _Reader) -> dict[str, Any]:
        """Where a version comes from, and what was made from it."""
        with parts.db.read() as tx:
            return service.lineage(tx, who.tenant, ref)

    @router.get("/{ref}/splits")
    def list_splits(ref: str, who: _Reader) -> list[Split]:
        """The recorded splits of a version."""
        with parts.db.read() as tx:
            return service.splits(tx, who.tenant, ref)


def _writing(router: APIRouter, parts: Parts) -> None:
    @router.post("", status_code=202)
    def import_dataset(body: ImportRequest, who: _Writer) -> Job:
        """Import a file, a database's rows or an object as a dataset's next version."""
        spec = service.check_import(asdict(body), parts.settings.home, who.home or who.tenant)
        if body.upload:
            parts.uploads.check(who.tenant, body.upload)
        with parts.db.write() as tx:
            storage.check(tx, parts, who.tenant)
            return service.submit_import(tx, who.tenant, spec, parts.keys)

    @router.post("/{ref}/clean", status_code=202)
    def clean_dataset(ref: str, body: CleanRequest, who: _Writer) -> Job:
        """Apply a recipe; the result is the dataset's next version."""
        with parts.db.write() as tx:
            storage.check(tx, parts, who.tenant)
            return service.submit_clean(tx, who.tenant, ref, body.recipe)

    @router.post("/{ref}/split", status_code=202)
    def split_dataset(ref: str, body: SplitRequest, who: _Writer) -> Job:
        """Divide a version's rows into train, validation and test."""
        with parts.db.write() as tx:
            storage.check(tx, parts, who.tenant)
            return service.submit_split(tx, who.tenant, ref, **asdict(body))

    @router.delete("/{ref}")
    def delete_dataset(ref: str, who: _Writer) -> Freed:
        """Remove a version, or all of a bare NAME, and free its storage."""
        with parts.storage:
            return Freed(service.delete(parts, who.tenant, ref))
