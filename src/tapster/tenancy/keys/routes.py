"""API keys over HTTP."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends

from tapster.contract.control import Key, Principal
from tapster.core.parts import Parts
from tapster.tenancy.access import need
from tapster.tenancy.in_force import InForce
from tapster.tenancy.keys import service

_Reader = Annotated[Principal, Depends(need("keys:read"))]
_Writer = Annotated[Principal, Depends(need("keys:write"))]


@dataclass
class NewKey:
    """A role, or rights; `endpoints` are the only names that the key is for, `tenants` those that

    a key of the installation's may act for. `expires_in` seconds; without it, never.
    """

    name: str = ""
    role: str = ""
    rights: list[str] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    expires_in: float | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Rotation:
    """The former secret is valid for `overlap` seconds more; `expires_in` sets another end."""

    overlap: float = 0.0
    expires_in: float | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts) -> APIRouter:
    """The routes under /keys."""
    router = APIRouter(prefix="/keys", tags=["keys"], route_class=InForce)

    @router.get("")
    def list_keys(who: _Reader) -> list[Key]:
        """List keys, newest first: what they may and when they were used, not their secrets."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant)

    @router.post("", status_code=201)
    def create_key(who: _Writer, body: NewKey) -> Key:
        """Make a key. Its secret is in this answer and nowhere else."""
        with parts.db.write() as tx:
            return service.make(
                tx,
                who,
                name=body.name,
                role=body.role,
                rights=body.rights,
                endpoints=body.endpoints,
                reach=body.tenants,
                expires_in=body.expires_in,
            )

    @router.get("/{key}")
    def show_key(who: _Reader, key: str) -> Key:
        """Show one key."""
        with parts.db.read() as tx:
            return service.show(tx, who.tenant, key)

    @router.post("/{key}/rotate")
    def rotate_key(who: _Writer, key: str, body: Rotation) -> Key:
        """Give a key another secret, which is in this answer and nowhere else."""
        with parts.db.write() as tx:
            return service.rotate(tx, who, key, overlap=body.overlap, expires_in=body.expires_in)

    @router.delete("/{key}")
    def revoke_key(who: _Writer, key: str) -> Key:
        """End a key now and for good, everywhere."""
        with parts.db.write() as tx:
            return service.revoke(tx, who.tenant, key)

    return router
