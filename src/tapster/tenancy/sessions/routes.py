"""Signing in and out over HTTP."""

import hmac
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends, Request

from tapster.contract.control import Principal, Session
from tapster.contract.errors import TapsterError
from tapster.core.crypto import key_digest
from tapster.core.parts import Parts
from tapster.tenancy import service as tenancy
from tapster.tenancy.access import address_of, everybody, need
from tapster.tenancy.audit.acts import about
from tapster.tenancy.in_force import InForce
from tapster.tenancy.members import service as members
from tapster.tenancy.rights import ANY
from tapster.tenancy.sessions import oidc, passwords, patience, service

_Anyone = Annotated[Principal, Depends(need(ANY))]
_Reader = Annotated[Principal, Depends(need("members:read"))]


@dataclass
class SignIn:
    """Who somebody says they are."""

    member: str
    password: str
    tenant: str = "default"
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class OidcStart:
    """Where the browser returns to, on the caller's own machine."""

    redirect: str
    tenant: str = "default"
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class OidcStarted:
    """Where to send the browser; `state` comes back with it, `secret` stays with the caller."""

    url: str
    state: str
    secret: str


@dataclass
class OidcFinish:
    """What came back with the browser, and the secret that had stayed."""

    state: str
    secret: str
    code: str
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class NewPassword:
    """A password, and the former one of who changes their own."""

    password: str
    former: str
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Identity:
    """Whom a key or token stands for, and what that may; `home` is where it belongs."""

    tenant: str
    home: str
    id: str
    name: str
    member: str
    rights: list[str]
    endpoints: list[str] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)


def routes(parts: Parts) -> list[APIRouter]:
    """The routes under /sessions."""
    return [_own(parts), _entering(parts), _others(parts)]


def _entering(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=InForce)
    provider = oidc.Provider(parts.settings)

    @router.post("", status_code=201, dependencies=[Depends(everybody)])
    def sign_in(body: SignIn, request: Request) -> Session:
        """Sign in with a password; the token is in this answer and nowhere else."""
        address = address_of(request)
        with parts.db.write() as tx:
            patience.attempt(tx, body.tenant, body.member, address)
            row = members.signing_in(tx, body.tenant, body.member)
        if row is not None:
            about(f"member={row['id']}", row["tenant"])
        if not passwords.matches(row and row["password"], body.password):
            raise _stranger()
        with parts.db.write() as tx:
            patience.forgive(tx, body.tenant, body.member, address)
            return tenancy.sign_in(
                tx,
                row["tenant"],
                row["id"],
                how="password",
                address=address,
                seconds=parts.settings.session_seconds,
                proved=row["password"],
            )

    @router.post("/oidc", status_code=201, dependencies=[Depends(everybody)])
    def begin_oidc(body: OidcStart, request: Request) -> OidcStarted:
        """Begin to sign in by OpenID Connect: where to send the browser."""
        oidc.check_redirect(body.redirect)
        with parts.db.write() as tx:
            patience.arrive(tx, address_of(request))
        pending = provider.begin(body.redirect)
        with parts.db.write() as tx:
            return OidcStarted(pending.url, pending.state, service.begin(tx, body.tenant, pending))

    @router.post("/oidc/finish", status_code=201, dependencies=[Depends(everybody)])
    def finish_oidc(body: OidcFinish, request: Request) -> Session:
        """End a sign-in by OpenID Connect; the token is in this answer and nowhere else."""
        with parts.db.write() as tx:
            begun = service.take(tx, body.state)
        if begun is None or not hmac.compare_digest(begun["secret"], key_digest(body.secret)):
            raise TapsterError(
                "unauthenticated", "this sign-in was not begun, or too long ago", field="state"
            )
        found = provider.finish(body.code, begun["redirect"], begun["nonce"], begun["verifier"])
        with parts.db.write() as tx:
            row = members.known_as(tx, begun["tenant"], found.subject, found.email)
            if row is None:
                raise oidc.refused("nobody in the tenant is known by it")
            patience.forgive(tx, row["tenant"], row["name"], address_of(request))
            return tenancy.sign_in(
                tx,
                row["tenant"],
                row["id"],
                how="oidc",
                address=address_of(request),
                seconds=parts.settings.session_seconds,
            )

    return router


def _own(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=InForce)

    @router.get("/current")
    def show_identity(who: _Anyone) -> Identity:
        """Show whom the key or token stands for, and what it may."""
        return Identity(
            tenant=who.tenant,
            home=who.home or who.tenant,
            id=who.key_id,
            name=who.name,
            member=who.member,
            rights=sorted(who.rights),
            endpoints=sorted(who.endpoints),
            tenants=sorted(who.tenants),
        )

    @router.get("/own")
    def list_own_sessions(who: _Anyone) -> list[Session]:
        """List the caller's own sessions, newest first."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant, _member(who))

    @router.delete("/current")
    def sign_out(who: _Anyone) -> Session:
        """End the session that asks."""
        _member(who)
        with parts.db.write() as tx:
            return service.end(tx, who, who.key_id)

    @router.put("/current/password")
    def change_own_password(who: _Anyone, body: NewPassword, request: Request) -> Identity:
        """Change the caller's own password, and end every other session of theirs."""
        member, address = _member(who), address_of(request)
        with parts.db.write() as tx:
            patience.attempt(tx, who.tenant, who.name, address)
            row = members.by_id(tx, who.tenant, member)
        if not passwords.matches(row and row["password"], body.former):
            raise TapsterError("forbidden", "the former password is another", field="former")
        stored = passwords.hashed(body.password, who.name)
        with parts.db.write() as tx:
            patience.forgive(tx, who.tenant, who.name, address)
            tenancy.set_own_password(tx, who, stored, proved=row["password"])
        return show_identity(who)

    return router


def _others(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=InForce)

    @router.get("")
    def list_sessions(who: _Reader) -> list[Session]:
        """List who is signed in, newest first."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant)

    @router.delete("/{session}")
    def end_session(who: _Anyone, session: str) -> Session:
        """End a session: one's own, or with the right members:write anybody's."""
        with parts.db.write() as tx:
            return service.end(tx, who, session)

    return router


def _stranger() -> TapsterError:
    return TapsterError(
        "unauthenticated",
        "tenant, name and password do not belong together",
        hint="names are written in small letters; who forgot a password asks an admin for another",
    )


def _member(who: Principal) -> str:
    """The caller's id as a member. Raises TapsterError(conflict) for a key, or away from home."""
    if not who.member or who.home:
        raise TapsterError(
            "conflict",
            "this is for members who are signed in, in their own tenant",
            hint="see `tapster login`",
        )
    return who.member
