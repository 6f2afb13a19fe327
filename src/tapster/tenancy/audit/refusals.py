"""Attempts that changed nothing, on their way to the record: alike ones together, not too many.

They wait a second, so that a flood of them is one write a second; beyond an allowance, a tenant's
(or everybody's without a name) are one line that counts them.
"""

import threading
import time
from dataclasses import replace
from typing import Final

from tapster.tenancy.audit.telling import Draft

BURST: Final = 200.0  # lines of a tenant at once
RATE: Final = 1.0  # lines of a tenant a second, for as long as it goes on
MOST: Final = 2000  # different lines that wait, of all tenants
_MOST_TENANTS: Final = 1000
_MANY: Final = "*"  # what stands where lines differ that were put together

_Alike = tuple[str, str, str, str, str, int, str]


class Refusals:
    """What is to be written; safe to use from any thread."""

    def __init__(self) -> None:
        self._waiting: dict[_Alike, Draft] = {}
        self._allowances: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def add(self, draft: Draft) -> None:
        """Put an attempt to those like it."""
        with self._lock:
            key = _alike(draft)
            new = key not in self._waiting
            if new and (len(self._waiting) >= MOST or not self._allowed(draft.tenant)):
                draft = _vague(draft, self._tenant_known(draft.tenant))
                key = _alike(draft)
            known = self._waiting.get(key)
            if known is None:
                self._waiting[key] = draft
            else:
                known.count += draft.count

    def take(self) -> list[Draft]:
        """Everything that waits."""
        with self._lock:
            taken, self._waiting = list(self._waiting.values()), {}
        return taken

    def give_back(self, drafts: list[Draft]) -> None:
        """What could not be written."""
        with self._lock:
            later, self._waiting = self._waiting, {_alike(draft): draft for draft in drafts}
            for key, draft in later.items():
                known = self._waiting.setdefault(key, draft)
                if known is not draft:
                    known.count += draft.count

    def _allowed(self, tenant: str) -> bool:
        """Whether a tenant may have one more line; an allowance grows again with time."""
        now = time.monotonic()
        left, since = self._allowances.pop(tenant, (BURST, now))
        left = min(BURST, left + (now - since) * RATE)
        if len(self._allowances) >= _MOST_TENANTS:
            self._allowances.pop(next(iter(self._allowances)))
        self._allowances[tenant] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def _tenant_known(self, tenant: str) -> bool:
        vague = sum(key[4] == _MANY for key in self._waiting)
        return bool(tenant) and vague < _MOST_TENANTS


def _alike(draft: Draft) -> _Alike:
    return (
        draft.tenant,
        draft.who,
        draft.client,
        draft.action,
        draft.object,
        draft.status,
        draft.code,
    )


def _vague(draft: Draft, named: bool) -> Draft:
    """One that stands for many: only whose they are is told, and that they failed alike."""
    return replace(
        draft,
        tenant=draft.tenant if named else "",
        who=_MANY,
        client="",
        action=_MANY,
        object=_MANY,
        before=None,
        after=None,
    )
