"""Roles over HTTP."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends

from tapster.contract.control import Principal, Role
from tapster.core.parts import Parts
from tapster.tenancy import service as tenancy
from tapster.tenancy.access import need
from tapster.tenancy.in_force import InForce
from tapster.tenancy.roles import service

_Reader = Annotated[Principal, Depends(need("roles:read"))]
_Writer = Annotated[Principal, Depends(need("roles:write"))]


@dataclass
class Rights:
    """Rights, as the reference lists them, and words for people."""

    rights: list[str]
    description: str = ""
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts) -> APIRouter:
    """The routes under /roles."""
    router = APIRouter(prefix="/roles", tags=["roles"], route_class=InForce)

    @router.get("")
    def list_roles(who: _Reader) -> list[Role]:
        """List the roles that come along, and the tenant's own."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant)

    @router.get("/{role}")
    def show_role(who: _Reader, role: str) -> Role:
        """Show one role."""
        with parts.db.read() as tx:
            return service.show(tx, who.tenant, role)

    @router.put("/{role}")
    def set_role(who: _Writer, role: str, body: Rights) -> Role:
        """Make a role, or change it for all who have it; of rights that the caller holds."""
        with parts.db.write() as tx:
            return tenancy.put_role(tx, who, role, body.rights, body.description)

    @router.delete("/{role}")
    def delete_role(who: _Writer, role: str) -> dict[str, str]:
        """Delete a role that nobody has."""
        with parts.db.write() as tx:
            tenancy.remove_role(tx, who, role)
        return {"deleted": role}

    return router
