"""Tenants over HTTP."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends

from tapster.contract.control import Principal, Tenant
from tapster.core.parts import Parts
from tapster.tenancy import service as tenancy
from tapster.tenancy.access import need
from tapster.tenancy.in_force import InForce
from tapster.tenancy.tenants import service

_Reader = Annotated[Principal, Depends(need("tenants:read"))]
_Writer = Annotated[Principal, Depends(need("tenants:write"))]


@dataclass
class NewTenant:
    """A name that stays, and words for people."""

    name: str
    title: str = ""
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Weight:
    """A share, beside 1 of every other tenant, when several wait for a model."""

    weight: float
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts) -> APIRouter:
    """The routes under /tenants."""
    router = APIRouter(prefix="/tenants", tags=["tenants"], route_class=InForce)

    @router.get("")
    def list_tenants(who: _Reader) -> list[Tenant]:
        """List every tenant."""
        with parts.db.read() as tx:
            return service.listing(tx)

    @router.post("", status_code=201)
    def add_tenant(who: _Writer, body: NewTenant) -> Tenant:
        """Make a tenant."""
        with parts.db.write() as tx:
            return service.add(tx, body.name, body.title)

    @router.get("/{tenant}")
    def show_tenant(who: _Reader, tenant: str) -> Tenant:
        """Show one tenant."""
        with parts.db.read() as tx:
            return service.show(tx, tenant)

    @router.post("/{tenant}/suspend")
    def suspend_tenant(who: _Writer, tenant: str) -> Tenant:
        """Turn a tenant's keys and members away at once; everything of its stays."""
        with parts.db.write() as tx:
            return tenancy.suspend_tenant(tx, tenant)

    @router.post("/{tenant}/weight")
    def weigh_tenant(who: _Writer, tenant: str, body: Weight) -> Tenant:
        """Say how much of the turns a tenant gets when several wait for a model."""
        with parts.db.write() as tx:
            return service.weigh(tx, tenant, body.weight)

    @router.post("/{tenant}/resume")
    def resume_tenant(who: _Writer, tenant: str) -> Tenant:
        """Let a suspended tenant's keys and members in again."""
        with parts.db.write() as tx:
            return service.resume(tx, tenant)

    return router
