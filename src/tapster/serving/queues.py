"""Where requests wait for a model: tenants take turns, by what their requests cost.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). Every tenant has a moment, in virtual time,
at which its next request is due. Whose moment comes first is served, and its moment moves on by
the request's cost over the tenant's weight. Who had nothing waiting joins at the moment of the
request that was taken last: nobody saves up turns. A tenant's own requests are taken in order.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain, count
from typing import Final

from tapster.serving.costs import Cost
from tapster.serving.work import Work

# A batch takes no more of the time that its requests have left than this share.
SHARE: Final = 0.25
LEAST_WEIGHT: Final = 1e-3
# Tenants without anything waiting whose moments are remembered, beyond as many as have something.
REMEMBERED: Final = 64


class Room:
    """How much more goes into a batch for a thread.

    No more rows than are worth it, and none that would leave the request with the tightest
    deadline less time than the run takes several times over; the first request goes in always.
    """

    def __init__(self, cost: Cost, together: bool) -> None:
        self._cost = cost
        self._most = cost.worthwhile if together else 0
        self._rows = 0
        self._until = math.inf
        self._now = time.monotonic()

    def takes(self, work: Work) -> bool:
        """Whether this request goes in too; asked in the order of the batch."""
        rows = self._rows + work.rows
        until = min(self._until, work.deadline)
        if self._rows and (
            rows > self._most or self._cost.duration(rows) > SHARE * (until - self._now)
        ):
            return False
        self._rows, self._until = rows, until
        return True


class Flow:
    """What a tenant has waiting, by shape; its next request is `due` in virtual time.

    `count` requests, which cost `cost` together.
    """

    __slots__ = ("cost", "count", "due", "lines", "weight")

    def __init__(self) -> None:
        self.lines: dict[object, deque[Work]] = {}
        self.count = 0
        self.cost = 0.0
        self.due = 0.0
        self.weight = 1.0

    @property
    def held(self) -> float:
        """How much of the queue it has, for its weight."""
        return self.count / self.weight

    def add(self, shape: object, work: Work, cost: float) -> None:
        """Let a request wait."""
        line = self.lines.get(shape)
        if line is None:
            line = self.lines[shape] = deque()
        line.append(work)
        self.count += 1
        self.cost += cost

    def oldest(self) -> object:
        """The shape of what has waited longest."""
        lines = self.lines
        if len(lines) == 1:
            return next(iter(lines))
        return min(lines, key=lambda shape: lines[shape][0].began)

    def newest(self) -> object:
        """The shape of what came last."""
        return max(self.lines, key=lambda shape: self.lines[shape][-1].began)

    def lose(self, shape: object, cost: float) -> None:
        """A request of so much cost has left its line."""
        self.count -= 1
        self.cost = self.cost - cost if self.count else 0.0
        if not self.lines[shape]:
            del self.lines[shape]


class Queue:
    """The requests that wait for one model: `count` of them, of `rows` rows.

    `weight` is a tenant's: one of weight 2 is served twice as much as one of weight 1 while both
    wait. What runs together costs its rows, what runs alone costs a run; where shapes differ
    (`shaped`), only those of one shape run together, without padding, and cost their values.

    Requests are put in order only once not all that wait are taken at once.
    """

    def __init__(
        self, weight: Callable[[str], float], *, together: bool = True, shaped: bool = False
    ) -> None:
        self.count = 0
        self.rows = 0
        self._weight = weight
        self._together = together
        self._shaped = shaped and together
        self._only: str | None = ""  # whose all that waits is; None once there were several
        self._fresh: deque[Work] = deque()  # not yet in the flow of their tenant
        self._flows: dict[str, Flow] = {}
        self._order: list[tuple[float, int, Flow]] = []  # a heap of those with something waiting
        self._joined = count().__next__
        self._now = 0.0  # the virtual time

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Work]:
        return chain(
            chain.from_iterable(
                line for flow in self._flows.values() for line in flow.lines.values()
            ),
            self._fresh,
        )

    @property
    def contended(self) -> bool:
        """Whether several tenants have had something waiting since nothing did."""
        return self._only is None and self.count > 0

    def append(self, work: Work) -> None:
        """Let a request wait."""
        if work.tenant != self._only:
            self._only = None if self.count else work.tenant
        self._fresh.append(work)
        self.count += 1
        self.rows += work.rows

    def drain(self) -> list[Work]:
        """Take out everything, each tenant's in order."""
        everything = list(self) if self._flows else list(self._fresh)
        self._fresh.clear()
        self._clear()
        self.count = self.rows = 0
        return everything

    def take(self, room: Room) -> tuple[list[Work], list[Work]]:
        """Requests that run together, as far as there is room; and those met whose caller is gone.

        The first is that of the tenant who is next which has waited longest; its shape is all's.
        """
        if self._only is not None and not (self._flows or self._shaped):
            return self._take_in_order(room)
        self._arrange()
        batch: list[Work] = []
        gone: list[Work] = []
        passed: list[tuple[float, int, Flow]] = []
        order = self._order
        shape: object = None
        while order:
            due, _, flow = order[0]
            shape = shape if batch else flow.oldest()
            line = flow.lines.get(shape)
            if line is None:
                passed.append(heappop(order))
                continue
            work = line[0]
            if not (work.done or room.takes(work)):
                break
            cost = self._cost(work)
            if work.done:
                gone.append(line.popleft())
            else:
                batch.append(line.popleft())
                self._now = max(self._now, due)
                flow.due = due + cost / flow.weight
            flow.lose(shape, cost)
            if flow.count:
                heapreplace(order, (flow.due, self._joined(), flow))
            else:
                heappop(order)
        for entry in passed:
            heappush(order, entry)
        self._took(batch, gone)
        return batch, gone

    def _take_in_order(self, room: Room) -> tuple[list[Work], list[Work]]:
        """As `take`, of the only tenant there is."""
        batch: list[Work] = []
        gone: list[Work] = []
        line = self._fresh
        while line:
            if line[0].done:
                gone.append(line.popleft())
            elif room.takes(line[0]):
                batch.append(line.popleft())
            else:
                break
        self._took(batch, gone)
        return batch, gone

    def expire(self, now: float) -> tuple[list[Work], list[Work]]:
        """Take out what is past its deadline, and what has lost its caller."""
        gone = [work for work in self if work.done]
        late = [work for work in self if work.deadline <= now and not work.done]
        if late or gone:
            self._arrange()
            for flow in self._flows.values():
                self._sift(flow, now)
            self._order = [entry for entry in self._order if entry[2].count]
            heapify(self._order)
            self._took(late, gone)
        return late, gone

    # -- a queue that is full, or too long

    def ahead(self, tenant: str) -> float:
        """The share (0 to 1) of what waits that goes before a request of this tenant."""
        if tenant == self._only:
            return 1.0
        self._arrange()
        mine = self._flows.get(tenant)
        due = self._now
        if mine is not None:
            due = max(due, mine.due) + mine.cost / mine.weight
        first = total = 0.0
        for _, _, flow in self._order:
            total += flow.cost
            first += min(flow.cost, max(0.0, due - flow.due) * flow.weight)
        return first / total if total else 0.0

    def fullest(self, tenant: str) -> Flow | None:
        """Who is to give way to a request of this tenant when the queue is full.

        That is who holds most of it, by weight; None if that would be this tenant itself. Who
        holds no more than its share is never asked to give way to another, nor refused.
        """
        if tenant == self._only:
            return None
        self._arrange()
        mine = self._flows.get(tenant)
        held = (1 + (mine.count if mine is not None else 0)) / self._weighed(tenant)
        most = max((flow for _, _, flow in self._order), key=lambda flow: flow.held, default=None)
        return most if most is not None and most.held > held else None

    def oust(self, flow: Flow) -> Work:
        """Take out a tenant's newest request."""
        shape = flow.newest()
        work = flow.lines[shape].pop()
        flow.lose(shape, self._cost(work))
        if not flow.count:
            self._order = [entry for entry in self._order if entry[2] is not flow]
            heapify(self._order)
        self._took([work], [])
        return work

    # -- order

    def _arrange(self) -> None:
        """Put what came since into the flows of its tenants."""
        fresh, flows = self._fresh, self._flows
        while fresh:
            work = fresh.popleft()
            flow = flows.get(work.tenant)
            if flow is None:
                flow = flows[work.tenant] = Flow()
            if not flow.count:
                flow.due = max(flow.due, self._now)
                flow.weight = self._weighed(work.tenant)
                heappush(self._order, (flow.due, self._joined(), flow))
            flow.add(_shape(work) if self._shaped else None, work, self._cost(work))
        if len(flows) > REMEMBERED + 2 * len(self._order):
            self._flows = {
                tenant: flow for tenant, flow in flows.items() if flow.count or flow.due > self._now
            }

    def _cost(self, work: Work) -> float:
        if not self._together:
            return 1.0
        if self._shaped and not isinstance(work.inputs, bytes):
            return float(sum([array.size for array in work.inputs.values()])) or 1.0
        return work.rows or 1.0

    def _weighed(self, tenant: str) -> float:
        return max(self._weight(tenant), LEAST_WEIGHT)

    def _sift(self, flow: Flow, now: float) -> None:
        """Drop what is over or late."""
        lines: dict[object, deque[Work]] = {}
        for shape, line in flow.lines.items():
            kept = deque([work for work in line if work.deadline > now and not work.done])
            if kept:
                lines[shape] = kept
        flow.lines = lines
        waiting = [work for line in lines.values() for work in line]
        flow.count = len(waiting)
        flow.cost = sum(map(self._cost, waiting))

    def _took(self, some: list[Work], others: list[Work]) -> None:
        self.count -= len(some) + len(others)
        self.rows -= sum([work.rows for work in some]) + sum([work.rows for work in others])
        if not self.count:
            self._clear()

    def _clear(self) -> None:
        """Nothing waits: nobody is owed anything."""
        if self._flows:
            self._flows.clear()
            self._order.clear()
            self._now = 0.0


def _shape(work: Work) -> object:
    """What requests must have in common to run together; packed rows are all of one width."""
    if isinstance(work.inputs, bytes):
        return None
    return tuple((name, array.shape[1:]) for name, array in sorted(work.inputs.items()))
