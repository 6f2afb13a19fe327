"""What Tapster does while harm is done to it: the scenarios of `tests/faults`, as figures.

Each runs on a fresh installation or data plane on this machine and prints a table in Markdown,
with the goal where there is one. The harm is at full length unless `--scale` says otherwise; all
of it takes about forty minutes, and nothing else should run meanwhile. Exit code 0 if every goal
is met, 1 if not.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from tests.conftest import Server  # noqa: E402 - found from the line above
from tests.faults.scenarios import (  # noqa: E402
    cardinality,
    hoarding,
    kills,
    leaving,
    misbehaving,
    outage,
    overload,
    rollouts,
    slow,
    stopping,
)
from tests.faults.scenarios.load import percentile  # noqa: E402
from tests.serving.conftest import Plane  # noqa: E402

MIB: Final = 1 << 20
SLOW: Final = 2000


class Figure(NamedTuple):
    """A measured number; `met` is None where nothing was promised."""

    name: str
    shown: str
    goal: str = ""
    met: bool | None = None


Figures = Iterator[Figure]


def below(name: str, value: float, goal: float, unit: str = "ms") -> Figure:
    """A figure that must be below its goal; seconds are shown as milliseconds if `unit` is ms."""
    scale = 1e3 if unit == "ms" else 1.0
    digits = 1 if value * scale < 100 else 0
    shown = f"{value * scale:,.{digits}f} {unit}"
    return Figure(name, shown, f"under {goal * scale:,.10g} {unit}", value < goal)


def none(name: str, count: int, of: str = "") -> Figure:
    """A count that must be 0."""
    return Figure(name, f"{count}{f' of {of}' if of else ''}", "0", count == 0)


def told(name: str, value: Any) -> Figure:
    """A figure that only explains others."""
    return Figure(name, f"{value:,}" if isinstance(value, int) else str(value))


def times(name: str, values: Iterable[float]) -> Figure:
    """Median, 99th percentile and maximum, in milliseconds."""
    found = list(values)
    shares = [percentile(found, share) * 1e3 for share in (0.5, 0.99, 1.0)]
    return told(name, "{:,.1f} / {:,.1f} / {:,.1f} ms".format(*shares))


# -- the scenarios


def killed_workers(folder: Path, scale: float) -> Figures:
    """One of two workers killed a hundred times."""
    with installation(folder, workers=2) as server:
        seen = kills.kill_workers(server, max(2, round(100 * scale)))
    yield told("workers killed", seen.kills)
    yield none("wrong answers", len(seen.wrong), f"{seen.answered + seen.rpc_answered:,}")
    yield told("REST requests lost, all inside a killed worker", seen.broken)
    yield none("requests lost elsewhere", seen.strangers + seen.refused)
    yield told("gRPC calls lost, of those inside", len(seen.rpc_failed))
    yield times("until two workers are ready (median / p99 / most)", seen.recovered)
    yield below("slowest return to full strength", max(seen.recovered), 2.0, "s")
    yield none("files, processes, shared memory left behind", int(seen.before != seen.after))


def misbehaving_models(folder: Path, scale: float) -> Figures:
    """Models that sleep, spin in C, eat memory, crash, and take long, beside others."""
    settings = {"python_models": "true", "model_memory": 512 * MIB}
    with installation(folder, **settings) as server:
        misbehaving.prepare(server)
        rounds = max(1, round(6 * scale))
        found = [
            misbehaving.misbehave(server, deed, rounds, deadline=5.0, calm=max(5.0, 20 * scale))
            for deed in misbehaving.DEEDS
        ]
        found.append(misbehaving.run_for_long(server, max(2, round(20 * scale))))
        found.append(misbehaving.run_one_operator_for_long(server))
    for seen in found:
        yield from _misdeeds(seen)


def _misdeeds(seen: misbehaving.Misdeeds) -> Figures:
    deed = f"a model that {seen.deed}"
    if 504 in seen.statuses:
        limit = 5.0 if seen.deed in misbehaving.ENDLESS else misbehaving.DEADLINE
        yield below(f"{deed}: 504 after its deadline", max(seen.took) - limit, 0.25)
    else:
        yield times(f"{deed}: {sorted(seen.statuses)} after", seen.took)
    yield below(f"{deed}: replaced", max(seen.replaced), 5.0, "s")
    yield none(
        f"{deed}: neighbours' requests lost or wrong", len(seen.failures), f"{seen.answered:,}"
    )
    for name, during in seen.during.items():
        before = percentile(seen.before[name], 0.99)
        after = percentile(during, 0.99)
        shown = f"{before * 1e3:.1f} / {after * 1e3:.1f} ms"
        met = after < 1.5 * before
        yield Figure(f"{deed}: p99 of {name!r} before / meanwhile", shown, "under 1.5 times", met)


def slow_clients(folder: Path, scale: float) -> Figures:
    """Two thousand slow clients beside one that is not."""
    for kind in slow.KINDS:
        with data_plane(folder / kind, receive_timeout=max(2.0, 10.0 * scale)) as plane:
            seen = slow.besiege(plane, kind, SLOW, max(5.0, 60 * scale))
        answers = len(seen.alone) + len(seen.beside)
        failed = len(seen.failures) + len(seen.statuses - {200})
        yield none(f"slow {kind}: the normal client's errors", failed, f"{answers:,}")
        yield times(f"slow {kind}: normal client alone (median / p99 / most)", seen.alone)
        yield times(f"slow {kind}: normal client beside {SLOW:,}", seen.beside)
        yield times(f"slow {kind}: a slow one is let stay", seen.held)
        yield told(f"slow {kind}: memory before / most", _memory(*seen.memory))


def too_many_requests(folder: Path, scale: float) -> Figures:
    """Ten times as many requests as can be answered."""
    with data_plane(folder) as plane:
        seen = overload.overload(plane, max(5.0, 60 * scale))
    yield told("answers a second at best / offered", f"{seen.peak:,.0f} / {seen.offered:,.0f}")
    ratio = seen.goodput / seen.peak
    yield Figure("answers a second, of the best", f"{ratio:.2f}", "at least 0.9", ratio >= 0.9)
    yield none("wrong or lost", len(seen.failures) + len(seen.statuses - {200, 503, 504}))
    yield times("answered with 200 (median / p99 / most)", seen.accepted)
    yield times("refused with 503", seen.rejected)
    yield below("refused, p99", percentile(seen.rejected, 0.99), 0.02)
    before, after = seen.memory
    grown = after / before - 1
    yield Figure("memory, grown by", f"{grown:.1%}", "under 10 %", grown < 0.1)
    yield below("back to normal", seen.recovery, 2.0, "s")
    yield told("load generator busy", f"{seen.generator:.0%}")


def changing_traffic(folder: Path, scale: float) -> Figures:
    """Shares, canaries, rollbacks and switches at 110 requests a second."""
    with installation(folder, workers=2) as server:
        seen = rollouts.roll_out(server, max(5.0, 200 * scale))
    failed = len(seen.failures) + len(seen.statuses - {200})
    yield none("errors and wrong answers", failed, f"{seen.answered:,}")
    yield told("changes", sum(map(len, seen.changes.values())))
    for name, took in seen.changes.items():
        yield below(f"{name}, slowest", max(took), 1.0)
    calm, changing = seen.p99
    shown = f"{calm * 1e3:.1f} / {changing * 1e3:.1f} ms"
    met = changing < 1.5 * calm
    yield Figure("p99 without / with changes", shown, "under 1.5 times", met)


def no_control_plane(folder: Path, scale: float) -> Figures:
    """No control plane, or none with a database, for ten minutes in all."""
    with installation(folder, workers=2) as server:
        outage.prepare(server)
        for name in outage.NAMES:
            seen = outage.without_control(server, name, max(5.0, outage.SECONDS[name] * scale))
            failed = len(seen.failures) + len(seen.statuses - {200})
            yield none(f"{name}: inference errors", failed, f"{seen.answered:,}")
            refused = [took for took, status in seen.control if status == 503]
            yield times(f"{name}: control plane's 503 (median / p99 / most)", refused)
            others = {status for _, status in seen.control} - {200, 503}
            yield none(f"{name}: other failures of the control plane", len(others))
            yield told(f"{name}: back", f"{seen.recovery:.1f} s")


def leaving_clients(folder: Path, scale: float) -> Figures:
    """Clients that hang up."""
    with data_plane(folder) as plane:
        process = leaving.serve(plane)
        for way in leaving.WAYS:
            seen = [leaving.leave(plane, way) for _ in range(max(2, round(20 * scale)))]
            yield none(f"{way}: rows run for nobody", sum(each.ran for each in seen))
            yield below(f"{way}: nothing in flight", max(e.emptied for e in seen), 1.0)
            yield below(f"{way}: model free", max(each.freed for each in seen), 1.0)
        resets = leaving.reset_in_bodies(plane, process, max(100, round(10_000 * scale)))
    yield none(f"files left of {resets.sent:,} resets in bodies", max(resets.left, 0))
    yield below("all closed", resets.settled, 5.0, "s")


def stops(folder: Path, scale: float) -> Figures:
    """Stops that were asked for."""
    with installation(folder / "workers", workers=2) as server:
        seen = stopping.stop_workers(server, max(2, round(40 * scale)))
    yield none("workers stopped: requests lost", len(seen.failures), f"{seen.answered:,}")
    yield times("workers stopped: ended after (median / p99 / most)", seen.took)
    with installation(folder / "all", workers=2) as server:
        seen = stopping.stop_everything(server)
    yield none("everything stopped: requests lost", len(seen.failures), f"{seen.answered:,}")
    yield none("everything stopped: processes left", len(seen.orphans))
    yield times("everything stopped: ended after", seen.took)
    for grace, again in ((1.0, None), (30.0, 0.3)):
        with installation(folder / f"grace{grace}", workers=2, stop_grace=grace) as server:
            seen = stopping.stop_in_the_middle(server, again=again)
        name = "a second signal after 0.3 s" if again else f"in the middle, {grace:g} s of grace"
        yield below(f"{name}: ended after", seen.took[0], (again or grace) + 1.0, "s")


def unknown_names(folder: Path, scale: float) -> Figures:
    """A hundred thousand names that nobody knows."""
    with data_plane(folder) as plane:
        seen = cardinality.flood(plane, max(5000, round(100_000 * scale)))
    yield told("requests for unknown names", seen.requests)
    before, after = seen.series
    yield Figure("time series more", str(after - before), "under 50", after - before < 50)
    yield below("a scrape, slowest", max(seen.scrapes), 0.2)
    yield told("memory before / after", _memory(*seen.memory))


def hoarders(folder: Path, scale: float) -> Figures:
    """Bodies as large as they may be, and answers that nobody reads."""
    clients = max(2, round(8 * scale))
    with data_plane(folder / "bodies") as plane:
        seen = hoarding.send_large(plane, clients, 64 * MIB)
    yield told("bodies of 64 MiB at once", f"{clients}: {dict(seen.statuses)}")
    yield told("large bodies: memory before / most", _memory(seen.before, seen.most))
    yield from _small("large bodies", seen)
    with data_plane(folder / "answers", receive_timeout=max(2.0, 10.0 * scale)) as plane:
        seen = hoarding.read_nothing(plane, 200, 20, max(5.0, 30 * scale))
    yield told("answers unread: memory before / most", _memory(seen.before, seen.most))
    yield from _small("answers unread", seen)


def _small(name: str, seen: hoarding.Hoard) -> Figures:
    failed = len(seen.failures) + len(seen.small_statuses - {200})
    yield none(f"{name}: a normal client's errors", failed, f"{len(seen.small):,}")
    yield times(f"{name}: a normal client (median / p99 / most)", seen.small)


def _memory(before: int, after: int) -> str:
    return f"{before // MIB:,} / {after // MIB:,} MiB"


SCENARIOS: Final[dict[str, Callable[[Path, float], Figures]]] = {
    "kills": killed_workers,
    "models": misbehaving_models,
    "slow": slow_clients,
    "overload": too_many_requests,
    "rollouts": changing_traffic,
    "outage": no_control_plane,
    "leaving": leaving_clients,
    "stops": stops,
    "names": unknown_names,
    "hoarders": hoarders,
}


# -- where they run


@contextmanager
def installation(folder: Path, **settings: object) -> Iterator[Server]:
    """A running installation; one that a scenario has stopped is left so."""
    given = {f"TAPSTER_{name.upper()}": str(value) for name, value in settings.items()}
    server = Server(folder / "home", given).start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def data_plane(folder: Path, **settings: object) -> Iterator[Plane]:
    """A home for workers, without a control plane."""
    given = {f"TAPSTER_{name.upper()}": str(value) for name, value in settings.items()}
    plane = Plane(folder / "home", given)
    try:
        yield plane
    finally:
        plane.stop()


def main(arguments: list[str] | None = None) -> int:
    """Run scenarios and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}; all if none")
    parser.add_argument("--scale", type=float, default=1.0, help="of the full length")
    options = parser.parse_args(arguments)
    if unknown := set(options.scenarios) - SCENARIOS.keys():
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    missed, load = 0, os.getloadavg()[0]
    print(f"On {os.cpu_count()} cores, other work taking {load:.1f} of them.")
    for name in options.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]
        title = (scenario.__doc__ or name).rstrip(".")
        print(f"\n**{title}**\n\n| | measured | goal |\n|---|--:|--:|")
        with tempfile.TemporaryDirectory(prefix="tapster-faults-") as folder:
            for figure in scenario(Path(folder), options.scale):
                mark = " NOT MET" if figure.met is False else ""
                print(f"| {figure.name} | {figure.shown} | {figure.goal}{mark} |", flush=True)
                missed += figure.met is False
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
