"""The table of rights as the reference prints it: what the walks hold the server against."""

import re
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs/reference/rights.md"
ROLES: Final = ("owner", "admin", "developer", "operator", "consumer", "auditor")
_ROW: Final = re.compile(r"\| _?`([^`]+)`_? \| (?:`([^`]+)`|[^|]*) \|((?: (?:yes)? ?\|){6})")


def section(title: str) -> dict[str, tuple[str, frozenset[str]]]:
    """The rows of a section: the right that a route needs, and the roles that may use it."""
    page = PAGE.read_text()
    text = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = {}
    for row in _ROW.finditer(text):
        marks = [mark.strip() for mark in row[3].split("|")[:-1]]
        let_in = frozenset(role for role, mark in zip(ROLES, marks, strict=True) if mark)
        found[row[1]] = (row[2] or "", let_in)
    assert found, f"the page has no rows under {title}"
    return found
