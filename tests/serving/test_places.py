"""Places of counters: held while somebody may count there, then somebody else's from nothing."""

import http.client
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tapster.contract.plan import EndpointPlan, Options, Variant
from tapster.serving import places
from tapster.serving import slots as layout
from tapster.serving.labels import PLACES
from tapster.serving.places import KEPT_SECONDS, SHORT_SECONDS, Hold, Places
from tapster.serving.slots import Slots
from tapster.serving.tables import Totals
from tests.faults.soak import scaled
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, wait_for
from tests.serving.loads import BODY
from tests.serving.rpc.calling import INFER, call, channel, sum_request

SERIES = re.compile(
    r'^tapster_requests_total\{tenant="default",endpoint="(.*)",version="(.*)",code="2xx"\} (\d+)$',
    re.MULTILINE,
)


class Moment:
    """The time of day, as a test has it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


@contextmanager
def clock() -> Iterator[Moment]:
    made = Moment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "time", made)
        yield made


class Life(RuleBasedStateMachine):
    """Three workers that take labels, count, let go, and die at any moment.

    Of every label that anybody holds the page shows exactly what was counted since its place was
    given to it, of no label anything else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = clock()
        self.moment = self.clock.__enter__()
        self.watching = Slots(Path(self.folder.name) / "slots")
        self.totals = Totals(self.watching)
        self.workers: dict[int, tuple[Slots, Places]] = {}
        self.holds: dict[int, list[tuple[str, Hold]]] = {}
        self.counted: Counter[str] = Counter()
        self.given: dict[str, int] = {}
        for index in range(3):
            self.start(index)

    def start(self, index: int) -> None:
        slots = Slots(Path(self.folder.name) / "slots")
        region = slots.region(index)
        region.start(os.getpid())
        self.workers[index] = slots, Places(slots, region)
        self.holds[index] = []

    @rule(index=st.integers(0, 2), name=st.integers(0, 11))
    def take(self, index: int, name: int) -> None:
        hold = self.workers[index][1].hold("t", f"e{name}", "1")
        held = [label for holds in self.holds.values() for label, _ in holds]
        label = f"e{name}"
        number = self.watching.labels.number(hold.number)
        if self.given.get(label) != number:
            assert label not in held, "two places of one label"
            self.given[label], self.counted[label] = number, 0
        self.holds[index].append((label, hold))

    @precondition(lambda self: any(self.holds.values()))
    @rule(data=st.data())
    def count(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from([i for i, holds in self.holds.items() if holds]))
        label, hold = data.draw(st.sampled_from(self.holds[index]))
        region = self.workers[index][0].region(index)
        region.count(hold.place, layout.OK)
        region.count(hold.place, layout.ROWS, 3)
        self.counted[label] += 1

    @precondition(lambda self: any(self.holds.values()))
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from([i for i, holds in self.holds.items() if holds]))
        self.holds[index].pop(data.draw(st.integers(0, len(self.holds[index]) - 1)))

    @rule(index=st.integers(0, 2))
    def tend(self, index: int) -> None:
        self.workers[index][1].tend()

    @rule(seconds=st.sampled_from((1, 20, SHORT_SECONDS, KEPT_SECONDS, -5000)))
    def time_passes(self, seconds: int) -> None:
        self.moment.now += seconds

    @rule(index=st.integers(0, 2), soon=st.booleans())
    def die(self, index: int, soon: bool) -> None:
        """What it held is still in the file."""
        self.workers[index][1].close()
        if soon:
            self.start(index)
        else:
            other = self.workers[(index + 1) % 3][1]
            self.holds[index] = []
            other.tend()
            self.start(index)

    @rule(index=st.integers(0, 2), name=st.integers(0, 11))
    def die_while_giving(self, index: int, name: int) -> None:
        """Killed between the text of a label and what says that it counts."""
        slots, held = self.workers[index]
        slots.labels._clear = _die
        label = f"e{name}"
        try:
            hold = held.hold("t", label, "1")
        except _Killed:
            held.close()
            self.start(index)
        else:  # it had a place
            slots.labels._clear = slots._clear
            assert self.given[label] == self.watching.labels.number(hold.number)
            self.holds[index].append((label, hold))

    @invariant()
    def everything_is_shown_under_its_name(self) -> None:
        regions = list(self.watching.regions().values())
        found = self.totals.read(regions)
        shown: dict[str, int] = {}
        for number, spelled in found.names.items():
            if number:
                label = spelled.split('endpoint="')[1].split('"')[0]
                assert label not in shown
                shown[label] = int(found.table[number, layout.OK])
                assert int(found.table[number, layout.ROWS]) == 3 * shown[label]
                if self.given.get(label) == self.watching.labels.number(number):
                    assert shown[label] == self.counted[label]
                else:  # given, but its worker died before it could say so
                    assert shown[label] == 0
        for holds in self.holds.values():
            for label, hold in holds:
                assert shown[label] == self.counted[label]
                assert self.watching.name(hold.number) == ("t", label, "1")

    def teardown(self) -> None:
        self.clock.__exit__(None, None, None)
        for _, held in self.workers.values():
            held.close()
        self.folder.cleanup()


class _Killed(Exception):  # noqa: N818
    pass


def _die(number: int) -> None:
    raise _Killed


def test_nothing_is_counted_under_another_name() -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=int(scaled(60, 25)),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def moment() -> Iterator[Moment]:
    with clock() as made:
        yield made


def taken(path: Path, index: int = 0) -> tuple[Slots, Places]:
    slots = Slots(path)
    region = slots.region(index)
    region.start(os.getpid())
    return slots, Places(slots, region)


def test_a_place_is_another_s_once_nobody_held_it_for_long(tmp_path: Path, moment: Moment) -> None:
    slots, mine = taken(tmp_path / "slots")
    _, theirs = taken(tmp_path / "slots", 1)
    old = [held.hold("t", "sum", "1") for held in (mine, theirs)]
    slots.region(0).count(old[0].place, layout.OK)
    del old[0]
    mine.tend()
    for seconds in (KEPT_SECONDS, KEPT_SECONDS):
        moment.now += seconds + 1
        mine.tend()
        assert mine.hold("t", "sum", "1").number == 1
    del old[0]
    mine.tend()
    theirs.tend()
    moment.now += places.SWEEP_SECONDS
    mine.tend()
    moment.now += KEPT_SECONDS - 1
    mine.tend()
    assert slots.totals(1)[layout.OK] == 1
    moment.now += SHORT_SECONDS
    mine.tend()
    assert [place[3:] for place in slots.places()] == [("other", "")]
    new = mine.hold("t", "sum", "2")
    assert (new.number, slots.totals(1)[layout.OK]) == (1, 0)
    mine.close()
    theirs.close()


def test_what_the_dead_held_is_nobody_s(tmp_path: Path, moment: Moment) -> None:
    slots, mine = taken(tmp_path / "slots")
    theirs = taken(tmp_path / "slots", 1)[1]
    holds = [theirs.hold("t", f"e{number}", "1") for number in range(10)]
    theirs.close()
    for seconds in (0, KEPT_SECONDS + 1):
        moment.now += seconds
        mine.tend()
    assert len(slots.places()) == 1
    successor = taken(tmp_path / "slots", 1)[1]
    kept = successor.hold("t", "e5", "1")
    for _ in range(2):
        moment.now += KEPT_SECONDS + 1
        mine.tend()
        successor.tend()
    assert [place.endpoint for place in slots.places()] == ["other", "e5"]
    assert (len(holds), kept.number) == (10, 1)
    for each in (mine, successor):
        each.close()


def test_places_are_kept_less_long_when_there_are_few(tmp_path: Path, moment: Moment) -> None:
    _, mine = taken(tmp_path / "slots")
    holds = [mine.hold("t", str(number), "1") for number in range(PLACES + 10)]
    assert sorted(hold.number for hold in holds) == [0] * 11 + list(range(1, PLACES))
    holds = holds[:10]
    mine.tend()
    moment.now += places.SWEEP_SECONDS
    mine.tend()
    assert mine.hold("t", "late", "1").number == 0
    moment.now += SHORT_SECONDS + 1
    more = [mine.hold("t", f"new-{number}", "1") for number in range(PLACES - 11)]
    assert sorted(hold.number for hold in more + holds) == list(range(1, PLACES))
    assert mine.hold("t", "late", "1").number == 0
    mine.close()


def held(slots: Slots) -> set[tuple[str, str]]:
    """Endpoints and versions of the places that some worker holds."""
    return {
        (place.endpoint, place.version)
        for place in slots.places()
        for region in slots.regions().values()
        if place.given and slots.words[region + layout.HELD + place.number] == place.given
    }


def age(slots: Slots, seconds: int) -> None:
    """Let time pass for places that nobody holds, and have them looked at."""
    since = layout.HEADER_WORDS + PLACES
    for word in range(since, since + PLACES):
        if slots.words[word]:
            slots.words[word] -= seconds
    slots.words[layout.SWEPT] = 0


def series(plane: Plane) -> dict[tuple[str, str], int]:
    """Good answers by endpoint and version."""
    page = plane.call("GET", "/metrics").body.decode()
    return {(name, version): int(count) for name, version, count in SERIES.findall(page)}


def test_more_versions_than_places_come_and_go(new_plane: Callable[..., Plane]) -> None:
    """Of each some are called, by two workers one of which is killed again and again: every count
    is exact, and whatever was held is given back."""
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    rounds, many = 4, 1100
    names = [f"e{number}" for number in range(many)]
    slots = Slots(plane.slots)
    seen: set[tuple[str, str]] = set()
    for version in range(1, rounds + 1):
        plane.plan(*(endpoint(name, package, version) for name in names), packages=(package,))
        for index in (0, 1):
            if index not in plane.workers or plane.workers[index].poll() is not None:
                plane.start(index)
            plane.applied(index=index)
        wanted: Counter[tuple[str, str]] = Counter()
        for number in range(0, many, 29):
            name = names[(number + version) % many]
            for _ in range(1 + number % 3):
                assert plane.call("POST", f"/v2/models/{name}/infer", BODY).status == 200
                wanted[name, str(version)] += 1
        shown = series(plane)
        assert {key: shown.get(key) for key in wanted} == wanted
        seen |= shown.keys()
        plane.workers[1].kill()
        plane.workers[1].wait()
        now = {(name, word) for name in names for word in ("", str(version))}
        wait_for(lambda now=now: held(slots) >= now, "all to be held")  # type: ignore[misc]
        age(slots, 0)
        wait_for(lambda: slots.words[layout.SWEPT], "a look at the places")
        age(slots, KEPT_SECONDS + 1)
        wait_for(
            lambda now=now: {place[3:] for place in slots.places()[1:]} == now,  # type: ignore[misc]
            "places to be given back",
        )
    assert len({version for _, version in seen}) == rounds
    assert slots.words[layout.GIVEN] >= PLACES + many
    assert slots.totals(0)[layout.OK] == 0
    slots.close()


def test_nothing_is_held_for_longer_than_it_serves(new_plane: Callable[..., Plane]) -> None:
    """Whatever was called, and by connections that stay open."""
    plane = new_plane()
    one, two = packages.regressor(plane.home, 1.0), packages.regressor(plane.home, 2.0)
    both = (Variant("m", 1, one.digest, weight=0.5), Variant("m", 2, two.digest, weight=0.5))
    soon = Options(deadline=10.0)  # until then an ensemble looks after its requests
    shadow = (both[0], Variant("m", 2, two.digest, shadow=True))
    canary = (both[0], Variant("m", 3, two.digest, weight=0.5, canary=True))
    every = (
        EndpointPlan("ep-split", "default", "split", both),
        EndpointPlan("ep-shadow", "default", "shadow", shadow),
        EndpointPlan("ep-canary", "default", "canary", canary),
        EndpointPlan(
            "ep-whole", "default", "whole", both, kind="ensemble", version=4, options=soon
        ),
    )
    plane.plan(*every, packages=(one, two))
    plane.start()
    plane.applied()
    slots = Slots(plane.slots)
    wait_for(lambda: len(held(slots)) == 13, "what serves to be held")
    line = http.client.HTTPConnection("127.0.0.1", plane.port, timeout=30)
    with closing(line), channel(plane) as made:
        for name in ("split", "shadow", "canary", "whole") * 5:
            headers = {"Authorization": f"Bearer {KEY}"}
            line.request("POST", f"/v2/models/{name}/infer", BODY, headers)
            answer = line.getresponse()
            assert (answer.status, len(answer.read()) > 0) == (200, True)
            assert call(plane, INFER, sum_request(name=name), made=made).code.name == "OK"
        plane.plan(packages=(one, two))
        wait_for(lambda: not held(slots), "everything to be let go")
        again = EndpointPlan("ep-split", "default", "split", both[:1])
        plane.plan(again, packages=(one, two))
        wait_for(lambda: held(slots) == {("split", ""), ("split", "1")}, "what serves to be held")
    slots.close()
