"""Prometheus text (version 0.0.4) of all workers, read from the shared slots."""

from typing import Final

from tapster.serving import slots as layout
from tapster.serving.engine import Engine
from tapster.serving.slots import Region, Slots

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_CLASSES: Final = (
    ("2xx", layout.OK),
    ("4xx", layout.CLIENT_ERRORS),
    ("5xx", layout.SERVER_ERRORS),
)
_GAUGES: Final = (
    ("tapster_in_flight_requests", "Requests being answered.", layout.IN_FLIGHT),
    ("tapster_queued_requests", "Requests waiting for a model.", layout.QUEUED),
    ("tapster_connections", "Open connections.", layout.CONNECTIONS),
    ("tapster_plan_number", "Number of the serving plan in force.", layout.PLAN),
    ("tapster_worker_start_time_seconds", "When the worker started.", layout.STARTED),
)


def render(slots: Slots, engine: Engine, own: Region) -> str:
    """The metrics page."""
    own.set(layout.QUEUED, engine.queued())
    workers = slots.regions()
    lines: list[str] = []
    _places(lines, slots)
    _workers(lines, slots, workers)
    _batches(lines, slots, list(workers.values()))
    _models(lines, engine)
    return "\n".join(lines) + "\n"


def _places(lines: list[str], slots: Slots) -> None:
    requests, rows, durations = [], [], []
    for number, tenant, endpoint, version in slots.places():
        counts = slots.totals(number)
        names = _labels(tenant=tenant, endpoint=endpoint, version=version)
        for name, word in _CLASSES:
            requests.append(f'tapster_requests_total{{{names},code="{name}"}} {counts[word]}')
        rows.append(f"tapster_rows_total{{{names}}} {counts[layout.ROWS]}")
        durations += _histogram(
            "tapster_request_duration_seconds",
            names,
            [bound / 1e9 for bound in layout.LATENCY_BOUNDS],
            counts[layout.LATENCY_BUCKETS :][: len(layout.LATENCY_BOUNDS) + 1],
            counts[layout.LATENCY_SUM] / 1e9,
        )
    _family(lines, "tapster_requests_total", "counter", "Requests by class of status.", requests)
    _family(lines, "tapster_rows_total", "counter", "Rows answered.", rows)
    _family(
        lines,
        "tapster_request_duration_seconds",
        "histogram",
        "From the whole request to its answer.",
        durations,
    )


def _workers(lines: list[str], slots: Slots, workers: dict[int, int]) -> None:
    words = slots.words
    for name, text, word in _GAUGES:
        values = [
            f'{name}{{worker="{index}"}} {words[offset + word]}'
            for index, offset in workers.items()
        ]
        _family(lines, name, "gauge", text, values)
    restarts = [
        f'tapster_worker_restarts_total{{worker="{index}"}} {words[offset + layout.STARTS] - 1}'
        for index, offset in workers.items()
    ]
    _family(lines, "tapster_worker_restarts_total", "counter", "Starts after the first.", restarts)
    refused = sum(words[offset + layout.REFUSED] for offset in workers.values())
    _family(
        lines,
        "tapster_refused_requests_total",
        "counter",
        "Requests without a key that allows them.",
        [f"tapster_refused_requests_total {refused}"],
    )


def _batches(lines: list[str], slots: Slots, regions: list[int]) -> None:
    words = slots.words
    counts = [
        sum(words[region + layout.BATCH_BUCKETS + bucket] for region in regions)
        for bucket in range(len(layout.BATCH_BOUNDS) + 1)
    ]
    total = sum(words[region + layout.BATCH_SUM] for region in regions)
    histogram = _histogram("tapster_batch_size_rows", "", list(layout.BATCH_BOUNDS), counts, total)
    _family(lines, "tapster_batch_size_rows", "histogram", "Rows a batch.", histogram)


def _models(lines: list[str], engine: Engine) -> None:
    states = [
        f'tapster_package_state{{package="{state.digest[:16]}",state="{state.state}"}} 1'
        for state in engine.states()
    ]
    _family(lines, "tapster_package_state", "gauge", "Packages in the plan by state.", states)
    infos = [
        "tapster_model_info{"
        + _labels(
            tenant=e.plan.tenant,
            endpoint=e.plan.name,
            version=t.version,
            model=t.variant.model,
            package=t.variant.package[:16],
        )
        + "} 1"
        for e, t in engine.models()
    ]
    _family(lines, "tapster_model_info", "gauge", "What each endpoint serves.", infos)


def _histogram(
    name: str, labels: str, bounds: list[float], counts: list[int], total: float
) -> list[str]:
    lines = []
    running = 0
    comma = "," if labels else ""
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        running += count
        lines.append(f'{name}_bucket{{{labels}{comma}le="{bound}"}} {running}')
    shown = f"{{{labels}}}" if labels else ""
    return [*lines, f"{name}_sum{shown} {total}", f"{name}_count{shown} {running}"]


def _family(lines: list[str], name: str, kind: str, text: str, samples: list[str]) -> None:
    if samples:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]


def _labels(**names: str) -> str:
    return ",".join(f'{name}="{_escape(text)}"' for name, text in names.items())


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
