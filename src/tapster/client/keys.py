"""The verbs over API keys. With `tenant`, those of a tenant that one may act for."""

from collections.abc import Sequence
from typing import Any

from tapster.client.calling import Caller, listed
from tapster.client.transport import spell
from tapster.contract.control import Key


class KeyVerbs(Caller):
    """See Client."""

    def keys_create(
        self,
        role: str = "",
        *,
        rights: Sequence[str] = (),
        name: str = "",
        endpoints: Sequence[str] = (),
        tenants: Sequence[str] = (),
        expires_in: float | None = None,
        tenant: str = "",
    ) -> Key:
        """Make a key with the rights of a role, or with `rights`; `.key` is its secret, shown once.

        `endpoints` are the only names it is for; `tenants` those that a key of the installation's
        own tenant may act for. It ends `expires_in` seconds from now, or never.
        """
        body: dict[str, Any] = {"role": role, "rights": listed(rights), "name": name}
        body |= {"endpoints": listed(endpoints), "tenants": listed(tenants)}
        body |= {} if expires_in is None else {"expires_in": expires_in}
        return self._call(Key, "POST", "/keys", body, tenant=tenant)

    def keys_list(self, *, tenant: str = "") -> list[Key]:
        """Keys, newest first, without their secrets."""
        return self._call(list[Key], "GET", "/keys", tenant=tenant)

    def keys_show(self, key: str, *, tenant: str = "") -> Key:
        """One key, by its id."""
        return self._call(Key, "GET", f"/keys/{spell(key)}", tenant=tenant)

    def keys_rotate(
        self,
        key: str,
        *,
        overlap: float = 0.0,
        expires_in: float | None = None,
        tenant: str = "",
    ) -> Key:
        """Give a key another secret, in `.key`; the former is valid for `overlap` seconds more."""
        body: dict[str, Any] = {"overlap": overlap}
        body |= {} if expires_in is None else {"expires_in": expires_in}
        return self._call(Key, "POST", f"/keys/{spell(key)}/rotate", body, tenant=tenant)

    def keys_revoke(self, key: str, *, tenant: str = "") -> Key:
        """End a key now and for good."""
        return self._call(Key, "DELETE", f"/keys/{spell(key)}", tenant=tenant)
