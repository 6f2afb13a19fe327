"""The verbs over usage, prices and invoices. Money is decimal text, exact, never a float."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tapster.client.calling import Answer, Caller
from tapster.client.transport import spell
from tapster.contract.errors import TapsterError


class BillVerbs(Caller):
    """See Client."""

    def usage(
        self, by: str = "day", *, tenant: str = "", first: str = "", last: str = "", limit: int = 0
    ) -> Answer:
        """What was used from day `first` to `last`, by tenant, key, endpoint, model, hour or day.

        `rows` and `total` are what one pays, `earned` what others pay for one's endpoints. By
        default this month's (by hour, this day's), of all tenants for whoever may see them, else of
        one's own; `tenant` narrows it.
        """
        given = {"by": by, "tenant": tenant, "from": first, "to": last, "limit": limit}
        params = {name: value for name, value in given.items() if value}
        return self._call(Answer, "GET", "/usage", params=params)

    def usage_check(self) -> Answer:
        """Whether the sums that `usage` gives are those of the ledger's lines."""
        return self._call(Answer, "GET", "/usage/check", timeout=600.0)

    def prices_list(self, *, ended: bool = False) -> list[Answer]:
        """Prices for one's endpoints, and those that others ask of one; with `ended`, old ones."""
        params = {"ended": "true"} if ended else None
        return self._call(list[Answer], "GET", "/prices", params=params)

    def prices_set(
        self,
        endpoint: str = "",
        rates: Mapping[str, Any] | None = None,
        *,
        tenant: str = "",
        tiers: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> Answer:
        """Ask for calls of an endpoint from now on, of one tenant or of everybody.

        `rates` of request, row, token and compute (a second), such as {"row": "0.0001"}: texts,
        because a float is not exact. `tiers`: rates of what is above so many in a month. Without
        `endpoint`: what the installation asks for training (a second) and storage (a GiB an hour).
        """
        body = {
            "endpoint": endpoint,
            "tenant": tenant,
            "rates": _texts(rates or {}),
            "tiers": [
                {"above": above, "rates": _texts(more)} for above, more in (tiers or {}).items()
            ],
        }
        return self._call(Answer, "POST", "/prices", body)

    def prices_delete(self, price: str) -> Answer:
        """Ask a price no longer, by its id."""
        return self._call(Answer, "DELETE", f"/prices/{spell(price)}")

    def invoices(self, tenant: str = "") -> list[Answer]:
        """A tenant's invoices, the newest month first; one's own by default."""
        params = {"tenant": tenant} if tenant else None
        return self._call(list[Answer], "GET", "/invoices", params=params)

    def invoice(self, month: str, tenant: str = "") -> Answer:
        """The invoice of a month such as 2026-11: lines, total, showback."""
        params = {"tenant": tenant} if tenant else None
        return self._call(Answer, "GET", f"/invoices/{spell(month)}", params=params)

    def invoice_export(
        self, month: str, path: str | Path, *, format: str = "", tenant: str = ""
    ) -> Path:
        """Write an invoice to a file as json, csv or html, by default as its name ends."""
        final = Path(path).expanduser()
        kind = format or {".htm": "html"}.get(final.suffix, final.suffix.lower()[1:])
        if kind not in {"json", "csv", "html"}:
            raise TapsterError(
                "invalid",
                f"an invoice is written as json, csv or html, not {kind!r}",
                hint="name the file so, or say the format",
                field="format",
            )
        params = {"format": kind, **({"tenant": tenant} if tenant else {})}
        try:
            with self._transport.stream(f"/invoices/{spell(month)}", params=params) as response:
                final.write_bytes(b"".join(response.iter_bytes()))
        except OSError as error:
            message = f"{str(final)!r} cannot be written: {error.strerror}"
            raise TapsterError("invalid", message) from None
        return final


def _texts(rates: Mapping[str, Any]) -> dict[str, str]:
    """Rates as decimal texts. Raises TapsterError(invalid) for floats."""
    for name, value in rates.items():
        if isinstance(value, float | bool):
            raise TapsterError(
                "invalid",
                f"the price {name}={value!r} is a float, which is not exact",
                hint=f'write it as text: {{"{name}": "{value!r}"}}',
                field=name,
            )
    return {name: str(value) for name, value in rates.items()}
