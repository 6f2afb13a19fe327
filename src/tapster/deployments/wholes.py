"""Whole plans for data planes that need one: made once for all that ask at the same time.

With very many keys reading takes seconds, and nobody could write meanwhile. So keys are read page
by page, in transactions of their own. What changes between them has a later revision than the plan
that is given out, and comes again as a delta.
"""

import threading
from collections.abc import Iterator
from typing import Final

from tapster.contract.plan import KeyGrant
from tapster.contract.snapshots import pack
from tapster.core.parts import Parts
from tapster.deployments import planning
from tapster.tenancy import service as tenancy

PAGE: Final = 2000


class Wholes:
    """The newest whole plan that was given out."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._number, self._mark = -1, ""
        self._packed = b""

    def newest(self) -> bytes:
        """The whole plan, packed."""
        with self._lock:
            with self._parts.db.read() as tx:
                plan = planning.without_keys(tx, self._parts.signer.public)
            if (plan.number, plan.mark) != (self._number, self._mark) or not self._packed:
                self._packed = pack(plan, self._keys())
                self._number, self._mark = plan.number, plan.mark
            return self._packed

    def _keys(self) -> Iterator[KeyGrant]:
        with self._parts.db.read() as tx:
            found = tenancy.session_grants(tx)
        yield from found
        after = ""
        while True:
            with self._parts.db.read() as tx:
                found = tenancy.grants_beyond(tx, after, PAGE)
            if not found:
                return
            yield from found
            after = found[-1].id
