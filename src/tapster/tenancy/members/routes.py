"""Members over HTTP."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends

from tapster.contract.control import Member, Principal
from tapster.core.parts import Parts
from tapster.tenancy import service as tenancy
from tapster.tenancy.access import need
from tapster.tenancy.in_force import InForce
from tapster.tenancy.members import service
from tapster.tenancy.sessions import passwords

_Reader = Annotated[Principal, Depends(need("members:read"))]
_Writer = Annotated[Principal, Depends(need("members:write"))]


@dataclass
class NewMember:
    """A name, such as an e-mail address, and a role; without a password, by OpenID Connect only.

    `tenants` are those that a member of the installation's may act for.
    """

    name: str
    role: str
    password: str | None = None
    tenants: list[str] = field(default_factory=list)
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class MemberChange:
    """What to change; what is left out stays."""

    role: str | None = None
    tenants: list[str] | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class AnotherPassword:
    """A password for somebody who forgot theirs."""

    password: str
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts) -> APIRouter:
    """The routes under /members."""
    router = APIRouter(prefix="/members", tags=["members"], route_class=InForce)
    _reading(router, parts)
    _writing(router, parts)
    _barring(router, parts)
    return router


def _reading(router: APIRouter, parts: Parts) -> None:
    @router.get("")
    def list_members(who: _Reader) -> list[Member]:
        """List members."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant)

    @router.get("/{member}")
    def show_member(who: _Reader, member: str) -> Member:
        """Show one member, by name or id."""
        with parts.db.read() as tx:
            return service.show(tx, who.tenant, member)


def _writing(router: APIRouter, parts: Parts) -> None:
    @router.post("", status_code=201)
    def add_member(who: _Writer, body: NewMember) -> Member:
        """Add a member, with no more rights than the caller's."""
        stored = None if body.password is None else passwords.hashed(body.password, body.name)
        with parts.db.write() as tx:
            return service.add(tx, who, body.name, body.role, reach=body.tenants, password=stored)

    @router.patch("/{member}")
    def change_member(who: _Writer, member: str, body: MemberChange) -> Member:
        """Give a member another role, at once."""
        with parts.db.write() as tx:
            return tenancy.change_member(tx, who, member, body.role, body.tenants)

    @router.put("/{member}/password")
    def set_password(who: _Writer, member: str, body: AnotherPassword) -> Member:
        """Give a member another password, and end their sessions."""
        stored = passwords.hashed(body.password, member)
        with parts.db.write() as tx:
            return tenancy.set_password(tx, who, member, stored)


def _barring(router: APIRouter, parts: Parts) -> None:
    @router.post("/{member}/suspend")
    def suspend_member(who: _Writer, member: str) -> Member:
        """Keep a member out, and end their sessions at once."""
        with parts.db.write() as tx:
            return tenancy.suspend_member(tx, who, member)

    @router.post("/{member}/resume")
    def resume_member(who: _Writer, member: str) -> Member:
        """Let a suspended member in again."""
        with parts.db.write() as tx:
            return service.set_status(tx, who, member, "active")

    @router.delete("/{member}")
    def remove_member(who: _Writer, member: str) -> Member:
        """Forget a member, and end their sessions at once; keys that they made stay."""
        with parts.db.write() as tx:
            return tenancy.remove_member(tx, who, member)
