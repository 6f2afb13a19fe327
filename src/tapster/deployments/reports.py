"""What agents have reported, kept in memory: the newest report of each machine."""

import time
from collections import defaultdict
from typing import Final

from tapster.contract.plan import UsageBatch, VariantTotals, WorkerState
from tapster.deployments.counts import Totals

FRESH: Final = 5.0


class Reports:
    """The newest report of each machine's agent, and when it came (monotonic seconds)."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, UsageBatch]] = {}
        self._totals: dict[str, dict[tuple[str, str], dict[str, VariantTotals]]] = {}
        self.count = 0

    def put(self, batch: UsageBatch) -> None:
        """Take a report in."""
        self._latest[batch.agent] = (time.monotonic(), batch)
        self._totals[batch.agent] = _sorted(batch)
        self.count += 1

    def workers(self) -> list[WorkerState]:
        """Workers that somebody has heard of within the last seconds."""
        return [worker for batch in self._fresh() for worker in batch.workers]

    def totals(self, tenant: str, endpoint: str) -> Totals:
        """The counters of an endpoint's versions, by agent and version; every agent is there."""
        return {
            agent: endpoints.get((tenant, endpoint), {})
            for agent, endpoints in self._totals.items()
        }

    def _fresh(self) -> list[UsageBatch]:
        horizon = time.monotonic() - FRESH
        return [batch for at, batch in self._latest.values() if at >= horizon]


def _sorted(batch: UsageBatch) -> dict[tuple[str, str], dict[str, VariantTotals]]:
    found: dict[tuple[str, str], dict[str, VariantTotals]] = defaultdict(dict)
    for each in batch.variants:
        found[each.tenant, each.endpoint][each.version] = each
    return dict(found)
