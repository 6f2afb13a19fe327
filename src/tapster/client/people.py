"""The verbs over tenants, members and roles. With `tenant`, those of one that one may act for."""

from collections.abc import Sequence
from typing import Any

from tapster.client.calling import Answer, Caller, listed
from tapster.client.transport import spell
from tapster.contract.control import Member, Role, Session, Tenant


class PeopleVerbs(Caller):
    """See Client."""

    def tenants_add(self, name: str, title: str = "") -> Tenant:
        """Make a tenant; only the installation's own can."""
        return self._call(Tenant, "POST", "/tenants", {"name": name, "title": title})

    def tenants_list(self) -> list[Tenant]:
        """Every tenant."""
        return self._call(list[Tenant], "GET", "/tenants")

    def tenants_show(self, name: str) -> Tenant:
        """One tenant."""
        return self._call(Tenant, "GET", f"/tenants/{spell(name)}")

    def tenants_suspend(self, name: str) -> Tenant:
        """Turn a tenant's keys and members away at once; everything of its stays."""
        return self._call(Tenant, "POST", f"/tenants/{spell(name)}/suspend")

    def tenants_resume(self, name: str) -> Tenant:
        """Let a suspended tenant's keys and members in again."""
        return self._call(Tenant, "POST", f"/tenants/{spell(name)}/resume")

    def tenants_weigh(self, name: str, weight: float) -> Tenant:
        """Say how much of the turns a tenant gets when several wait for a model; 1 at first."""
        return self._call(Tenant, "POST", f"/tenants/{spell(name)}/weight", {"weight": weight})

    def members_add(
        self,
        name: str,
        role: str,
        *,
        password: str = "",
        tenants: Sequence[str] = (),
        tenant: str = "",
    ) -> Member:
        """Add a member; without a password they sign in by OpenID Connect.

        `tenants` are those that a member of the installation's own tenant may act for.
        """
        body: dict[str, Any] = {"name": name, "role": role, "tenants": listed(tenants)}
        body |= {"password": password} if password else {}
        return self._call(Member, "POST", "/members", body, tenant=tenant)

    def members_list(self, *, tenant: str = "") -> list[Member]:
        """Members, by name."""
        return self._call(list[Member], "GET", "/members", tenant=tenant)

    def members_show(self, name: str, *, tenant: str = "") -> Member:
        """One member."""
        return self._call(Member, "GET", f"/members/{spell(name)}", tenant=tenant)

    def members_set(
        self,
        name: str,
        *,
        role: str = "",
        tenants: Sequence[str] | None = None,
        tenant: str = "",
    ) -> Member:
        """Give a member another role, or other tenants to act for."""
        body: dict[str, Any] = {"role": role} if role else {}
        body |= {} if tenants is None else {"tenants": listed(tenants)}
        return self._call(Member, "PATCH", f"/members/{spell(name)}", body, tenant=tenant)

    def members_password(self, name: str, password: str, *, tenant: str = "") -> Member:
        """Give a member another password, and end their sessions."""
        path = f"/members/{spell(name)}/password"
        return self._call(Member, "PUT", path, {"password": password}, tenant=tenant)

    def members_suspend(self, name: str, *, tenant: str = "") -> Member:
        """Keep a member out, and end their sessions at once."""
        return self._call(Member, "POST", f"/members/{spell(name)}/suspend", tenant=tenant)

    def members_resume(self, name: str, *, tenant: str = "") -> Member:
        """Let a suspended member in again."""
        return self._call(Member, "POST", f"/members/{spell(name)}/resume", tenant=tenant)

    def members_remove(self, name: str, *, tenant: str = "") -> Member:
        """Forget a member, and end their sessions at once."""
        return self._call(Member, "DELETE", f"/members/{spell(name)}", tenant=tenant)

    def sessions_list(self, *, tenant: str = "") -> list[Session]:
        """Who is signed in, newest first."""
        return self._call(list[Session], "GET", "/sessions", tenant=tenant)

    def sessions_end(self, session: str, *, tenant: str = "") -> Session:
        """End a session, by its id."""
        return self._call(Session, "DELETE", f"/sessions/{spell(session)}", tenant=tenant)

    def roles_list(self, *, tenant: str = "") -> list[Role]:
        """The roles that come along, and the tenant's own."""
        return self._call(list[Role], "GET", "/roles", tenant=tenant)

    def roles_show(self, name: str, *, tenant: str = "") -> Role:
        """One role."""
        return self._call(Role, "GET", f"/roles/{spell(name)}", tenant=tenant)

    def roles_set(
        self, name: str, rights: Sequence[str], description: str = "", *, tenant: str = ""
    ) -> Role:
        """Make a role of rights that one holds, or change it for all who have it."""
        body = {"rights": listed(rights), "description": description}
        return self._call(Role, "PUT", f"/roles/{spell(name)}", body, tenant=tenant)

    def roles_delete(self, name: str, *, tenant: str = "") -> Answer:
        """Delete a role that nobody has."""
        return self._call(Answer, "DELETE", f"/roles/{spell(name)}", tenant=tenant)
