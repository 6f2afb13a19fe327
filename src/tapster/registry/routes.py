"""Models and trusted keys over HTTP."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from tapster.contract.control import Job, ModelVersion, Principal
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.registry import packages, service, sharing, trust
from tapster.registry.service import InUse, Lent
from tapster.tenancy.access import need
from tapster.tenancy.in_force import InForce
from tapster.tenancy.limits import storage

_Reader = Annotated[Principal, Depends(need("models:read"))]
_Writer = Annotated[Principal, Depends(need("models:write"))]
_Admin = Annotated[Principal, Depends(need("admin:write"))]


@dataclass
class Import:
    """An upload that holds one exported package, or one model: a file, or a folder as a tar."""

    upload: str
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Description:
    """What to change of a version; what is left out stays."""

    description: str | None = None
    tags: dict[str, str] | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Borrowers:
    """Tenants by name, or all of them."""

    tenants: list[str] = field(default_factory=list)
    all: bool = False
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Trust:
    """A name of our own for an installation's Ed25519 public key (64 hex digits)."""

    name: str
    public_key: str
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class TrustedKey:
    """A key whose packages may be imported; `own` is this installation's."""

    name: str
    public_key: str
    created: float
    own: bool = False


@dataclass
class Freed:
    """Bytes of storage that became free."""

    freed: int


def routes(parts: Parts, in_use: InUse, lent: Lent) -> list[APIRouter]:
    """The routes under /models and /trust; `in_use` names the endpoints that need a version,
    `lent` says whether other tenants' do."""
    return [
        _models(parts, in_use, lent),
        _packages(parts),
        _names(parts),
        _sharing(parts),
        _trust(parts),
    ]


def _models(parts: Parts, in_use: InUse, lent: Lent) -> APIRouter:
    router = APIRouter(prefix="/models", tags=["models"])

    @router.get("")
    def list_models(
        who: _Reader,
        dataset: Annotated[str, Query(description="NAME or NAME@VERSION")] = "",
        data_digest: Annotated[str, Query(description="SHA-256 of a dataset version")] = "",
    ) -> list[ModelVersion]:
        """List the newest version of each model, or every version trained on some data.

        Models of other tenants that share them follow those of the caller.
        """
        with parts.db.read() as tx:
            if not dataset and not data_digest:
                return sharing.listing(tx, who.tenant)
            return service.listing(tx, who.tenant, dataset, data_digest)

    @router.get("/{ref}")
    def show_model(who: _Reader, ref: str) -> ModelVersion:
        """Show one version: NAME (the newest), NAME@VERSION or NAME:ALIAS."""
        with parts.db.read() as tx:
            return sharing.find(tx, who.tenant, ref)

    @router.get("/{ref}/versions")
    def list_versions(who: _Reader, ref: str) -> list[ModelVersion]:
        """List all versions of a model, newest first, with their metrics."""
        with parts.db.read() as tx:
            return sharing.versions(tx, who.tenant, ref)

    @router.get("/{ref}/lineage")
    def show_lineage(who: _Reader, ref: str) -> dict[str, Any]:
        """Show what a version was made from, and what else came of that."""
        with parts.db.read() as tx:
            return service.lineage(tx, who.tenant, ref)

    @router.post("/{model}/import", status_code=202)
    def import_model(who: _Writer, model: str, body: Import) -> Job:
        """Register an uploaded package or model as the model's next version."""
        parts.uploads.check(who.tenant, body.upload)
        with parts.db.write() as tx:
            storage.check(tx, parts, who.tenant)
            return service.submit_import(
                tx, who.tenant, model, body.upload, own_key=parts.signer.public
            )

    @router.delete("/{ref}")
    def delete_model(who: _Writer, ref: str) -> Freed:
        """Delete a version, or a whole model by its bare name, and free the storage."""
        with parts.storage:
            with parts.db.write() as tx:
                unused = service.delete(tx, who.tenant, ref, in_use, lent)
            return Freed(sum(parts.blobs.delete(key) for key in unused))

    return router


def _packages(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/models", tags=["models"])

    def stored(tenant: str, ref: str) -> tuple[ModelVersion, Path]:
        with parts.db.read() as tx:
            found = service.resolve(tx, tenant, ref)
        return found, parts.blobs.get(packages.key_of(tenant, found.digest))

    @router.get("/{ref}/evaluation")
    def show_evaluation(who: _Reader, ref: str) -> dict[str, Any]:
        """Show held-out metrics with intervals, confusion matrix, curves and leaderboard."""
        found, folder = stored(who.tenant, ref)
        return packages.evaluation(folder, found.digest)

    @router.get(
        "/{ref}/export",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-tar": {}}, "description": "The package"}},
    )
    def export_model(who: _Reader, ref: str) -> StreamingResponse:
        """Send a version as one file that another installation can import."""
        found, folder = stored(who.tenant, ref)
        name = f"{found.model}-{found.version}.tapster"
        headers = {
            "Content-Length": str(packages.export_size(folder)),
            "Content-Disposition": f'attachment; filename="{name}"',
        }
        return StreamingResponse(
            packages.export(folder), media_type="application/x-tar", headers=headers
        )

    return router


def _names(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/models", tags=["models"])

    @router.patch("/{ref}")
    def describe_model(who: _Writer, ref: str, body: Description) -> ModelVersion:
        """Change a version's description or tags."""
        with parts.db.write() as tx:
            return service.describe(tx, who.tenant, ref, body.description, body.tags)

    @router.put("/{ref}/aliases/{alias}")
    def set_alias(who: _Writer, ref: str, alias: str) -> ModelVersion:
        """Point an alias at a version; endpoints deployed by that alias follow."""
        with parts.db.write() as tx:
            return service.set_alias(tx, who.tenant, ref, alias)

    @router.delete("/{model}/aliases/{alias}")
    def unset_alias(who: _Writer, model: str, alias: str) -> dict[str, str]:
        """Remove an alias."""
        with parts.db.write() as tx:
            service.unset_alias(tx, who.tenant, model, alias)
        return {"deleted": alias}

    return router


def _sharing(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/models", tags=["models"], route_class=InForce)

    @router.post("/{model}/share")
    def share_model(who: _Writer, model: str, body: Borrowers) -> ModelVersion:
        """Let other tenants deploy a model, every version of it, at endpoints of their own."""
        _check(body)
        with parts.db.write() as tx:
            return sharing.share(tx, who.tenant, model, [sharing.ALL] if body.all else body.tenants)

    @router.post("/{model}/withdraw")
    def withdraw_model(who: _Writer, model: str, body: Borrowers) -> ModelVersion:
        """Let these tenants, or nobody else at all, use a model any longer: endpoints that serve
        it stop answering."""
        _check(body)
        with parts.db.write() as tx:
            return sharing.withdraw(tx, who.tenant, model, body.tenants)

    return router


def _check(body: Borrowers) -> None:
    if body.all and body.tenants:
        raise TapsterError("invalid", "name tenants, or all, not both", field="tenants")


def _trust(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/trust", tags=["trust"])

    @router.get("")
    def list_keys(who: _Reader) -> list[TrustedKey]:
        """List the keys whose packages may be imported, this installation's own first."""
        with parts.db.read() as tx:
            found = trust.keys(tx, who.tenant)
        own = TrustedKey("(this installation)", parts.signer.public, 0.0, own=True)
        return [own, *(TrustedKey(**key) for key in found)]

    @router.post("", status_code=201)
    def add_key(who: _Admin, body: Trust) -> TrustedKey:
        """Trust an installation's packages."""
        with parts.db.write() as tx:
            return TrustedKey(**trust.trust(tx, who.tenant, body.name, body.public_key))

    @router.delete("/{name}")
    def remove_key(who: _Admin, name: str) -> dict[str, str]:
        """Trust a key no longer; models imported already stay."""
        with parts.db.write() as tx:
            trust.distrust(tx, who.tenant, name)
        return {"deleted": name}

    return router
