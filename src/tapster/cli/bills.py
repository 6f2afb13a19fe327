"""Usage, prices and invoices as tables and plots for people."""

from typing import Any, Final

from tapster.cli.output import inert
from tapster.cli.tables import table, when

_BARS: Final = " ▏▎▍▌▋▊▉█"
_WIDTH: Final = 20
_COUNTS: Final = {
    "requests": "REQUESTS", "errors": "ERRORS", "rows": "ROWS", "tokens": "TOKENS",
    "cached": "CACHED",
}  # fmt: skip
_LABELS: Final = ("day", "hour", "tenant", "key", "owner", "endpoint", "model", "version")


def usage(found: dict[str, Any]) -> Any:
    """A table of what is paid, one of what is earned, each with a bar a line."""
    from rich.console import Group

    who = inert(found["tenant"]) or "all tenants"
    parts: list[Any] = [f"{who}, {found['from']} to {found['to']}, in {found['currency']}"]
    if found["rows"]:
        parts.append(_usage(found))
    elif not (found["earned"] or {}).get("rows"):
        parts.append("nothing was used")
    if earned := found["earned"]:
        parts += ["paid by others", _usage(earned)] if earned["rows"] else []
    return Group(*parts)


def _usage(part: dict[str, Any]) -> Any:
    rows, total = part["rows"], part["total"]
    labels = [name for name in _LABELS if name in rows[0]]
    counts = [name for name in _COUNTS if total[name]]
    more = [name for name in ("compute_seconds", "training_seconds") if total[name]]
    money = ["amount", *(["showback"] if float(total["showback"]) else [])]
    plotted = "amount" if float(total["amount"]) else "requests"
    top = max(float(row[plotted]) for row in rows)
    headers = [
        *[name.upper() for name in labels],
        *[_COUNTS[name] for name in counts],
        *[name.replace("_seconds", " s").upper() for name in more],
        *[name.upper() for name in money],
        "",
    ]
    lines = [
        [
            *[row[name] or "-" for name in labels],
            *[row[name] for name in counts],
            *[round(row[name], 3) for name in more],
            *[_right(row[name]) for name in money],
            _bar(float(row[plotted]), top),
        ]
        for row in rows
    ]
    last: list[Any] = ["total", *[""] * (len(labels) - 1), *[total[name] for name in counts]]
    last += [round(total[name], 3) for name in more]
    last += [*[_right(total[name]) for name in money], ""]
    if len(rows) < part["groups"]:
        lines.append([f"and {part['groups'] - len(rows):,} more", *[None] * (len(headers) - 1)])
    return table(headers, [*lines, last], headers[: len(labels)])


def prices(found: list[dict[str, Any]]) -> Any:
    """One line a price and tier."""
    return table(
        ["PRICE", "OWNER", "ENDPOINT", "FOR", "ABOVE", "COSTS", "SINCE", "UNTIL"],
        (
            [
                price["id"],
                price["owner"],
                price["endpoint"] or "(installation)",
                price["tenant"] or "everybody",
                tier["above"],
                _rates(tier["rates"], price["currency"]),
                when(price["since"]),
                when(price["until"]),
            ]
            for price in found
            for tier in [{"above": 0, "rates": price["rates"]}, *price["tiers"]]
        ),
        ["PRICE"],
    )


def invoices(found: list[dict[str, Any]]) -> Any:
    """One line an invoice."""
    return table(
        ["NUMBER", "MONTH", "STATUS", "TOTAL", "SHOWBACK"],
        (
            [
                each["number"],
                each["month"],
                each["status"],
                _right(f"{each['total']} {each['currency']}"),
                _right(f"{each['showback']} {each['currency']}"),
            ]
            for each in found
        ),
        ["NUMBER"],
    )


def invoice(found: dict[str, Any]) -> Any:
    """Head, lines, total and showback."""
    from rich.console import Group

    note = "" if found["status"] == "final" else f", until {when(found['closes'])}"
    parts: list[Any] = [
        inert(f"invoice {found['number']}: {found['month']} ({found['status']}{note})"),
        table(
            ["OWNER", "ENDPOINT", "MODEL", "COSTS", "ABOVE", "REQUESTS", "ROWS", "TOKENS",
             "COMPUTE S", "AMOUNT"],
            (
                [
                    line["owner"],
                    line["endpoint"],
                    "@".join(part for part in (line["model"], line["version"]) if part) or None,
                    _rates(line["rates"], ""),
                    line["above"],
                    line["requests"],
                    line["rows"],
                    line["tokens"],
                    round(line["compute_seconds"], 3),
                    _right(line["amount"]),
                ]
                for line in found["lines"]
            ),
        ),
        f"total {found['total']} {found['currency']}",
    ]  # fmt: skip
    house = found["showback"]
    if house["lines"]:
        parts += [f"showback {house['total']} {found['currency']}, not charged"]
    return Group(*parts)


def checked(found: dict[str, Any]) -> str:
    """Whether the ledger adds up."""
    if found["ok"]:
        return "every sum is that of its lines"
    return "\n".join(["sums differ from their lines:", *map(inert, found["differences"])])


def _rates(rates: dict[str, str], currency: str) -> str:
    spelled = ", ".join(f"{name} {price}" for name, price in rates.items())
    return f"{spelled} {currency}".strip() if spelled else "-"


def _right(text: str) -> Any:
    """Money as it is, to the right; as a number it would lose digits."""
    from rich.text import Text

    return Text(inert(text), justify="right")


def _bar(value: float, top: float) -> str:
    """A bar of eighths of a cell."""
    eighths = round(value / top * _WIDTH * 8) if top else 0
    if value and not eighths:
        eighths = 1
    return "█" * (eighths // 8) + _BARS[eighths % 8].strip()
