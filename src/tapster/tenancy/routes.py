"""Every room's routes over HTTP."""

from fastapi import APIRouter

from tapster.core.parts import Parts
from tapster.tenancy.keys import routes as keys
from tapster.tenancy.members import routes as members
from tapster.tenancy.roles import routes as roles
from tapster.tenancy.sessions import routes as sessions
from tapster.tenancy.tenants import routes as tenants


def routes(parts: Parts) -> list[APIRouter]:
    """The routes under /tenants, /members, /roles, /keys and /sessions."""
    return [
        tenants.routes(parts),
        members.routes(parts),
        roles.routes(parts),
        keys.routes(parts),
        *sessions.routes(parts),
    ]
