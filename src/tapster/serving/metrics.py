"""The metrics page of all workers, read from the shared slots and from what workers publish.

A place is shown while the plan names it, and for `KEPT_SECONDS` after its counters last changed,
if it is not given to another before (see `places`); they go on where they were when it comes back
in time. Labels are names of the plan only, so nothing that a caller sends makes the page grow.

The page is written in pieces of `SLICE_SECONDS`, with turns of the event loop between them.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from tapster.contract.plan import WorkerState
from tapster.serving import agent
from tapster.serving import slots as layout
from tapster.serving.engine import Engine
from tapster.serving.exposition import Page, Shape, counters, histogram, labels
from tapster.serving.places import KEPT_SECONDS
from tapster.serving.slots import Region, Slots
from tapster.serving.tables import Counted, Totals

SLICE_SECONDS: Final = 0.0005
PIECE: Final = 16
# A worker that has not beaten for so long is dead, and its gauges say nothing.
SILENT_SECONDS: Final = 30.0
SECOND: Final = 1e9


@dataclass(frozen=True)
class _Family:
    """A family with values for each place; `idle` says whether zeros are shown."""

    name: str
    kind: str
    text: str
    shape: Shape
    words: tuple[int, ...]
    unit: float = 1.0
    idle: bool = True


def _counter(
    name: str,
    text: str,
    *words: int,
    label: str = "",
    values: Sequence[str] = (),
    unit: float = 1.0,
    idle: bool = True,
) -> _Family:
    shape = counters(name, label, values, "%d" if unit == 1.0 else "%r")
    return _Family(name, "counter", text, shape, words, unit, idle)


_FAMILIES: Final = (
    _counter(
        "tapster_requests_total", "Requests answered, by class of status.",
        layout.OK, layout.CLIENT_ERRORS, layout.SERVER_ERRORS,
        label="code", values=("2xx", "4xx", "5xx"),
    ),
    _counter(
        "tapster_rejected_requests_total", "Requests that were not run, by reason.",
        layout.QUEUE_FULL, layout.EXPIRED, layout.LIMITED, layout.CANCELLED, layout.UNAVAILABLE,
        label="reason",
        values=("queue_full", "expired", "limited", "cancelled", "unavailable"),
    ),
    _counter("tapster_rows_total", "Rows answered.", layout.ROWS),
    _counter(
        "tapster_tokens_total", "Tokens of the requests answered.", layout.TOKENS, idle=False
    ),
    _counter("tapster_batches_total", "Runs of the model.", layout.BATCHES),
    _counter(
        "tapster_compute_seconds_total", "Time that the model ran.", layout.COMPUTE, unit=SECOND
    ),
    _counter(
        "tapster_cache_requests_total", "Requests looked up in the response cache, by result.",
        layout.CACHE_HITS, layout.CACHE_MISSES,
        label="result", values=("hit", "miss"), idle=False,
    ),
    _counter(
        "tapster_golden_answers_total", "Recorded answers asked for again of a canary.",
        layout.GOLDEN_SAME, layout.GOLDEN_DIFFERENT,
        label="result", values=("same", "different"), idle=False,
    ),
    _counter(
        "tapster_payloads_total", "Payloads to be logged, by what became of them.",
        layout.PAYLOADS_KEPT, layout.PAYLOADS_DROPPED,
        label="result", values=("kept", "dropped"), idle=False,
    ),
)  # fmt: skip
# Of models that callers do not address, shadows and members of ensembles: in families of their
# own, so that those above add up to what callers have asked.
_INNER_FAMILIES: Final = (
    _counter(
        "tapster_inner_requests_total", "Requests that an ensemble's members and shadows answered.",
        layout.OK, layout.CLIENT_ERRORS, layout.SERVER_ERRORS,
        label="code", values=("2xx", "4xx", "5xx"),
    ),
    _counter(
        "tapster_inner_compute_seconds_total", "Time that members and shadows ran.",
        layout.COMPUTE, unit=SECOND,
    ),
    _counter(
        "tapster_shadow_answers_total", "Answers of a shadow, compared with what callers got.",
        layout.SHADOW_SAME, layout.SHADOW_DIFFERENT, layout.SHADOW_BROKEN, layout.SHADOW_DROPPED,
        label="result", values=("same", "different", "error", "dropped"), idle=False,
    ),
)  # fmt: skip
_INNER_HISTOGRAMS: Final = (
    (
        "tapster_inner_request_duration_seconds",
        "From a request to its answer, of members and shadows.",
        layout.LATENCY_SUM,
        layout.LATENCY_BUCKETS,
    ),
)
_HISTOGRAMS: Final = (
    (
        "tapster_request_duration_seconds",
        "From the whole request to its answer.",
        layout.LATENCY_SUM,
        layout.LATENCY_BUCKETS,
    ),
    (
        "tapster_queue_wait_seconds",
        "From the whole request until the model begins with it.",
        layout.WAIT_SUM,
        layout.WAIT_BUCKETS,
    ),
)
_SECONDS: Final = [bound / SECOND for bound in layout.LATENCY_BOUNDS]
_GAUGES: Final = (
    ("tapster_in_flight_requests", "Requests being answered.", layout.IN_FLIGHT),
    ("tapster_queued_requests", "Requests waiting for a model.", layout.QUEUED),
    ("tapster_connections", "Open connections.", layout.CONNECTIONS),
    ("tapster_models_memory_bytes", "Memory of the models that are loaded.", layout.MODEL_BYTES),
    ("tapster_cache_memory_bytes", "Memory of the answers that are kept.", layout.CACHE_BYTES),
    ("tapster_plan_number", "Number of the serving plan in force.", layout.PLAN),
    ("tapster_worker_ready", "Whether the worker takes requests.", layout.READY),
    ("tapster_worker_start_time_seconds", "When the worker started.", layout.STARTED),
)
_VITALS: Final = (
    ("tapster_worker_resident_memory_bytes", "gauge", "Memory of the worker's process."),
    ("tapster_worker_open_fds", "gauge", "Open files and sockets of the worker."),
    ("tapster_worker_threads", "gauge", "Threads of the worker."),
    ("tapster_worker_cpu_seconds_total", "counter", "Processor time of the worker's process."),
)


class Metrics:
    """Writes the page; keeps the labels of places from one scrape to the next."""

    def __init__(self, slots: Slots, engine: Engine, region: Region, folder: Path) -> None:
        self._slots = slots
        self._engine = engine
        self._region = region
        self._folder = folder
        self._totals = Totals(slots)
        self._version = version("tapster")

    async def page(self, openmetrics: bool = False) -> Page:
        """The page in one of its two formats."""
        self._region.set(layout.QUEUED, self._engine.queued())
        workers = self._slots.regions()
        alive = [index for index in workers if self._slots.beats(index, SILENT_SECONDS)]
        regions = list(workers.values())
        states, vitals = await asyncio.to_thread(_published, self._folder, self._slots, alive)
        counted = await asyncio.to_thread(self._totals.read, regions)
        page = Page(openmetrics)
        for _ in self._written(page, counted, states):
            await asyncio.sleep(0)
        self._workers(page, workers, alive)
        _processes(page, vitals)
        self._batches(page, regions)
        page.family("tapster_build_info", "info", "What runs here.")
        page.samples([f"tapster_build_info{{{labels(version=self._version)}}} 1"])
        page.end()
        return page

    def _written(self, page: Page, counted: Counted, states: list[WorkerState]) -> Iterator[None]:
        """Write of places and models, stopping whenever a slice of time is used up."""
        named, known = self._named()
        table, names = counted.table, counted.names
        recent = table[:, layout.CHANGED] > time.time() - KEPT_SECONDS
        recent[0] = True
        recent[[number for number in known if number < len(recent)]] = True
        shown = np.flatnonzero(recent & counted.known)
        inner = np.isin(shown, sorted(counted.inner))
        pace = _Pace()
        for chosen, families, histograms in (
            (shown[~inner], _FAMILIES, _HISTOGRAMS),
            (shown[inner], _INNER_FAMILIES, _INNER_HISTOGRAMS),
        ):
            part, numbers = table[chosen], chosen.tolist()
            for family in families:
                page.family(family.name, family.kind, family.text)
                yield from pace.over(page, _counters(family, part, numbers, named, names))
            for name, text, total, buckets in histograms:
                page.family(name, "histogram", text)
                lines = _histogram((name, total, buckets), part, numbers, names)
                yield from pace.over(page, lines)
        yield from self._models(page, pace, states)

    # -- places

    def _named(self) -> tuple[set[int], set[int]]:
        """The numbers of the places of versions that the plan in force names, and of all others
        besides where requests to its endpoints may be counted."""
        start = self._region.place(0)
        named, known = set(), set()
        for endpoint in self._engine.endpoints():
            targets = [*endpoint.targets, *endpoint.shadows]
            places = [target.place for target in targets]
            places += [member.place for target in targets for member in target.members]
            named |= {(place - start) // layout.PLACE_WORDS for place in places}
            known.add((endpoint.place - start) // layout.PLACE_WORDS)
        return named, named | known

    # -- models

    def _models(self, page: Page, pace: "_Pace", states: list[WorkerState]) -> Iterator[None]:
        page.family("tapster_model_info", "info", "What each endpoint serves.")
        yield from pace.over(page, self._infos())
        page.family("tapster_traffic_weight_ratio", "gauge", "Share of an endpoint's requests.")
        yield from pace.over(page, self._weights())
        name = "tapster_package_memory_bytes"
        page.family(name, "gauge", "Memory of a package where it is loaded, as far as known.")
        yield from pace.over(page, self._sizes(name))
        found: dict[tuple[str, str], int] = {}
        for state in states:
            for package in state.packages:
                known = package.digest[:16], package.state
                found[known] = found.get(known, 0) + 1
        page.family("tapster_package_workers", "gauge", "Workers that have a package in a state.")
        yield from pace.over(
            page,
            (
                f"tapster_package_workers{{{labels(package=package, state=state)}}} {count}"
                for (package, state), count in sorted(found.items())
            ),
        )

    def _infos(self) -> Iterator[str]:
        for endpoint in self._engine.endpoints():
            for target in (*endpoint.targets, *endpoint.shadows):
                names = labels(
                    tenant=endpoint.plan.tenant,
                    endpoint=endpoint.plan.name,
                    version=target.version,
                    model=target.variant.model,
                    package=target.variant.package[:16],
                    role="shadow" if target.variant.shadow else "serving",
                )
                yield f"tapster_model_info{{{names}}} 1"

    def _sizes(self, name: str) -> Iterator[str]:
        models = {
            model.package.digest: model
            for endpoint in self._engine.endpoints()
            for model in endpoint.models
        }
        for digest, model in models.items():
            yield f"{name}{{{labels(package=digest[:16])}}} {model.loaded.memory}"

    def _weights(self) -> Iterator[str]:
        for endpoint in self._engine.endpoints():
            plan = endpoint.plan
            whole = sum(target.variant.weight for target in endpoint.targets) or 1.0
            for target in endpoint.targets:
                names = labels(tenant=plan.tenant, endpoint=plan.name, version=target.version)
                share = target.variant.weight / whole
                yield f"tapster_traffic_weight_ratio{{{names}}} {share:.6g}"

    # -- workers

    def _workers(self, page: Page, workers: dict[int, int], alive: list[int]) -> None:
        words = self._slots.words
        for name, text, word in _GAUGES:
            page.family(name, "gauge", text)
            page.samples(
                f'{name}{{worker="{index}"}} {words[workers[index] + word]}' for index in alive
            )
        name = "tapster_worker_restarts_total"
        page.family(name, "counter", "Starts of the worker after its first.")
        page.samples(
            f'{name}{{worker="{index}"}} {words[offset + layout.STARTS] - 1}'
            for index, offset in workers.items()
        )
        name = "tapster_refused_requests_total"
        page.family(name, "counter", "Requests without a key that allows them.")
        refused = sum(words[offset + layout.REFUSED] for offset in workers.values())
        page.samples([f"{name} {refused}"])

    def _batches(self, page: Page, regions: list[int]) -> None:
        words = self._slots.words
        name = "tapster_batch_size_rows"
        running = 0
        lines = []
        edges = [*(str(float(bound)) for bound in layout.BATCH_BOUNDS), "+Inf"]
        for bucket, edge in enumerate(edges):
            running += sum(words[region + layout.BATCH_BUCKETS + bucket] for region in regions)
            lines.append(f'{name}_bucket{{le="{edge}"}} {running}')
        total = sum(words[region + layout.BATCH_SUM] for region in regions)
        page.family(name, "histogram", "Rows of a run of a model.")
        page.samples([*lines, f"{name}_sum {total}", f"{name}_count {running}"])


def _counters(
    family: _Family, table: Any, numbers: list[int], named: set[int], names: dict[int, str]
) -> Iterator[str]:
    rows = table[:, family.words]
    values = (rows / family.unit if family.unit != 1.0 else rows).tolist()
    for number, row in zip(numbers, values, strict=True):
        if any(row) or (family.idle and (number in named or number == 0)):
            yield family.shape.lines(names[number], row)


def _histogram(
    which: tuple[str, int, int], table: Any, numbers: list[int], names: dict[int, str]
) -> Iterator[str]:
    """`which`: a family's name, the words of its sum and of its first bucket."""
    name, total, buckets = which
    shape = histogram(name, _SECONDS)
    running = np.cumsum(table[:, buckets : buckets + len(_SECONDS) + 1], axis=1).tolist()
    sums = (table[:, total] / SECOND).tolist()
    for number, row, seconds in zip(numbers, running, sums, strict=True):
        if row[-1]:
            yield shape.lines(names[number], (*row, seconds, row[-1]))


class _Pace:
    """Stops for a moment whenever a slice of time is used up."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + SLICE_SECONDS

    def over(self, page: Page, lines: Iterable[str]) -> Iterator[None]:
        """Put the lines on the page, piece by piece."""
        rest = iter(lines)
        while piece := list(islice(rest, PIECE)):
            page.samples(piece)
            if time.perf_counter() > self._until:
                yield
                self._until = time.perf_counter() + SLICE_SECONDS


def _processes(page: Page, vitals: dict[int, tuple[float, ...]]) -> None:
    for (name, kind, text), which in zip(_VITALS, range(len(_VITALS)), strict=True):
        page.family(name, kind, text)
        page.samples(
            f'{name}{{worker="{index}"}} {values[which]}' for index, values in vitals.items()
        )


def _published(
    folder: Path, slots: Slots, alive: list[int]
) -> tuple[list[WorkerState], dict[int, tuple[float, ...]]]:
    """What living workers have published, and what the system says of their processes."""
    import psutil

    vitals: dict[int, tuple[float, ...]] = {}
    for index in alive:
        with suppress(psutil.Error, OSError):
            process = psutil.Process(slots.state(index, layout.PID))
            with process.oneshot():
                times = process.cpu_times()
                vitals[index] = (
                    process.memory_info().rss,
                    process.num_fds(),
                    process.num_threads(),
                    round(times.user + times.system, 2),
                )
    return list(agent.published(folder, slots)), vitals
