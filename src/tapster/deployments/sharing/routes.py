"""Sharing over HTTP."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends

from tapster.contract.control import Endpoint, Principal
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.deployments import service as deployments
from tapster.deployments.sharing import service
from tapster.tenancy.access import need
from tapster.tenancy.in_force import InForce

_Writer = Annotated[Principal, Depends(need("endpoints:write"))]


@dataclass
class Consumers:
    """Tenants by name, or all of them."""

    tenants: list[str] = field(default_factory=list)
    all: bool = False
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts) -> APIRouter:
    """The routes under /endpoints that are about sharing."""
    router = APIRouter(prefix="/endpoints", tags=["endpoints"], route_class=InForce)

    @router.post("/{endpoint}/share")
    def share(who: _Writer, endpoint: str, body: Consumers) -> Endpoint:
        """Let other tenants call an endpoint, by its name and with their own keys."""
        with parts.db.write() as tx:
            service.share(tx, who.tenant, endpoint, _named(body))
            return deployments.show(tx, who.tenant, endpoint)

    @router.post("/{endpoint}/withdraw")
    def withdraw(who: _Writer, endpoint: str, body: Consumers) -> Endpoint:
        """Let these tenants, or nobody else at all, call an endpoint any longer."""
        with parts.db.write() as tx:
            service.withdraw(tx, who.tenant, endpoint, _named(body))
            return deployments.show(tx, who.tenant, endpoint)

    return router


def _named(body: Consumers) -> list[str]:
    if body.all and body.tenants:
        raise TapsterError("invalid", "name tenants, or all, not both", field="tenants")
    return [service.ALL] if body.all else body.tenants
