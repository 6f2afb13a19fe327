"""Invoices on paper: CSV for programs, one HTML page for a printer, with nothing from elsewhere."""

import csv
import io
import time
from html import escape
from typing import Any, Final

_COLUMNS: Final = (
    "owner", "endpoint", "model", "version", "price", "above", "requests", "errors", "rows",
    "tokens", "cached", "compute_seconds", "amount",
)  # fmt: skip
_PRINTED: Final = (
    "owner", "endpoint", "model", "costs", "above", "requests", "errors", "rows", "tokens",
    "cached", "compute_seconds", "amount",
)  # fmt: skip
_HOUSE: Final = ("kind", "name", "job", "costs", "above", "seconds", "byte_hours", "amount")
_NUMBERS: Final = frozenset(_PRINTED[4:]) | frozenset(_HOUSE[4:])
_ALWAYS: Final = frozenset({"requests", "rows", "amount"})
_HEADINGS: Final = {
    "above": "tier above", "compute_seconds": "compute (s)", "errors": "failed", "name": "",
    "byte_hours": "byte-hours", "owner": "provider",
}  # fmt: skip
_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
_STYLE: Final = """
body { font: 14px/1.45 system-ui, sans-serif; color: #111; max-width: 62rem; margin: 2.5rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
dl { display: grid; grid-template-columns: max-content auto; gap: .15rem 1.2rem; margin: 0 0 1rem; }
dt { color: #555; } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { text-align: left; padding: .32rem .5rem; border-bottom: 1px solid #ddd;
  vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; border-bottom: 2px solid #111; overflow-wrap: normal; }
.n { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.total td { font-weight: 700; border-top: 2px solid #111; border-bottom: 0; font-size: 1rem; }
.note { color: #555; } .open { border: 1px solid #b45309; color: #92400e; padding: .4rem .7rem; }
@page { size: A4 landscape; margin: 14mm; } @media print { body { margin: 0; max-width: none; } }
"""


def as_csv(invoice: dict[str, Any]) -> str:
    """The lines of an invoice, calls first, then showback; `charged` says which are to be paid."""
    out = io.StringIO()
    head = ("number", "tenant", "month", "status", "currency")
    names = (*_COLUMNS, "name", "job", "seconds", "byte_hours")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([*head, "kind", "charged", *names])
    fixed = [invoice[name] for name in head]
    for kind, charged, lines in (
        ("calls", "yes", invoice["lines"]),
        ("", "no", invoice["showback"]["lines"]),
    ):
        for line in lines:
            row = [*fixed, line.get("kind", kind), charged, *(line.get(n, "") for n in names)]
            writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def as_html(invoice: dict[str, Any]) -> str:
    """A page that prints on paper and asks nobody else for anything."""
    title = f"Invoice {invoice['number']}"
    house = invoice["showback"]
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _note(invoice),
        _facts(invoice),
        "<h2>Calls</h2>",
        _table(_PRINTED, _printed(invoice["lines"]), "Total", _money(invoice, invoice["total"])),
    ]
    if house["lines"]:
        parts += [
            "<h2>Showback</h2>",
            '<p class="note">What job time and storage come to. Not part of the total.</p>',
            _table(_HOUSE, _printed(house["lines"]), "Showback", _money(invoice, house["total"])),
        ]
    return "\n".join([*parts, "</body></html>", ""])


def _note(invoice: dict[str, Any]) -> str:
    if invoice["status"] == "final":
        return ""
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(invoice["closes"]))
    what = "This month is open: " if invoice["status"] == "open" else "This month is closing: "
    return f'<p class="open">{what}the invoice may change until {until}.</p>'


def _facts(invoice: dict[str, Any]) -> str:
    facts = {
        "Billed to": invoice["tenant"],
        "Month": f"{invoice['month']} (UTC)",
        "Status": invoice["status"],
        "Currency": invoice["currency"],
    }
    rows = "".join(f"<dt>{k}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items() if v)
    return f"<dl>{rows}</dl>"


def _printed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines as people read them: the model with its version, what a unit costs instead of an id."""
    return [
        {
            **line,
            "model": "@".join(str(line[name]) for name in ("model", "version") if line.get(name)),
            "costs": ", ".join(f"{rate} {price}" for rate, price in line["rates"].items()),
        }
        for line in lines
    ]


def _table(columns: tuple[str, ...], lines: list[dict[str, Any]], label: str, total: str) -> str:
    used = [
        name
        for name in columns
        if any(line.get(name) or (name in _ALWAYS and name in line) for line in lines)
    ]
    used = used or [columns[0], columns[-1]]
    head = "".join(f"<th{_side(name)}>{_heading(name)}</th>" for name in used)
    body = "".join(
        "<tr>" + "".join(f"<td{_side(n)}>{_text(n, line.get(n, ''))}</td>" for n in used) + "</tr>"
        for line in lines
    )
    foot = (
        f'<tr class="total"><td colspan="{max(len(used) - 2, 1)}">{label}</td>'
        f'<td class="n" colspan="2">{escape(total)}</td></tr>'
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot></table>"
    )


def _heading(name: str) -> str:
    return escape(_HEADINGS.get(name, name).replace("_", " "))


def _side(name: str) -> str:
    return ' class="n"' if name in _NUMBERS else ""


def _text(name: str, value: Any) -> str:
    if name in _NUMBERS and isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
    return escape(str(value))


def _money(invoice: dict[str, Any], amount: str) -> str:
    return f"{amount} {invoice['currency']}".strip()


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
