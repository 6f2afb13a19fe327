"""The repository extension on a machine of several workers: what one is told, all do."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.plan import EndpointPlan, Options, PackageRef, WorkerState
from tapster.core.settings import Settings
from tapster.serving import slots as layout
from tapster.serving.repository import Repository
from tapster.serving.rpc.messages import message
from tapster.serving.slots import Slots
from tapster.serving.wishes import Wishlist
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, grant, wait_for
from tests.serving.doubles import go, until
from tests.serving.loads import BODY
from tests.serving.rpc.calling import OPEN, ask, call

KEYS = (grant("tap_test-key"), grant("caller", "predict"), grant("theirs", tenant="other"))


@dataclass
class Machine:
    """Two workers of one home, each of which can be reached by itself."""

    planes: tuple[Plane, Plane]
    package: PackageRef

    def start(self, index: int) -> None:
        self.planes[index].start(index)
        self.planes[index].applied(self.planes[0].number, index)

    def states(self, package: PackageRef | None = None) -> list[str]:
        """Of a package, by worker."""
        wanted = (package or self.package).digest
        found = []
        for index, plane in enumerate(self.planes):
            data = (plane.home / "run" / f"worker-{index}.json").read_bytes()
            state = msgspec.json.decode(data, type=WorkerState)
            found += [each.state for each in state.packages if each.digest == wanted]
        return found

    def become(self, *states: str) -> None:
        wait_for(lambda: self.states() == list(states), f"both to be {states}")

    def agree(self, state: str, ready: bool, name: str = "sum") -> None:
        """Every worker tells the same, over both wires."""
        status = 200 if ready else 503
        for plane in self.planes:
            lines = plane.call("POST", "/v2/repository/index").json()
            assert [line["state"] for line in lines if line["name"] == name] == [state]
            assert plane.call("GET", f"/v2/models/{name}/ready").status == status
            request = message("inference.ModelReadyRequest")(name=name)
            said = ask(plane, f"{OPEN}/ModelReady", "inference.ModelReadyResponse", request)
            assert said.ready is ready

    def infer(self, index: int, name: str = "sum") -> int:
        return self.planes[index].call("POST", f"/v2/models/{name}/infer", BODY).status

    def manage(self, index: int, verb: str, wire: str, name: str = "sum", **more: Any) -> Any:
        """Status of a request to load or unload."""
        plane = self.planes[index]
        if wire == "rest":
            return plane.call("POST", f"/v2/repository/models/{name}/{verb}", **more).status
        request = message(f"inference.RepositoryModel{verb.title()}Request")(model_name=name)
        return call(plane, f"{OPEN}/RepositoryModel{verb.title()}", request, **more).code.name


@pytest.fixture
def machine(new_plane: Callable[..., Plane]) -> Machine:
    first, second = new_plane(), new_plane()
    second.home = first.home
    package = packages.regressor(first.home, 1.0)
    first.plan(endpoint("sum", package), packages=(package,), keys=KEYS)
    made = Machine((first, second), package)
    for index in (0, 1):
        made.start(index)
    return made


GOOD = {"rest": 200, "grpc": "OK"}


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_models_come_and_go_in_every_worker(machine: Machine, wire: str) -> None:
    for index in (0, 1):
        assert machine.manage(index, "unload", wire) == GOOD[wire]
        machine.become("cold", "cold")
        machine.agree("READY", True)
        assert machine.infer(index) == 200
        wait_for(lambda index=index: machine.states()[index] == "ready", "it to be back")  # type: ignore[misc]
        assert machine.states()[1 - index] == "cold"
        assert machine.manage(index, "load", wire) == GOOD[wire]
        machine.become("ready", "ready")
        machine.agree("READY", True)


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_only_the_owner_may(machine: Machine, wire: str) -> None:
    refusals = {"rest": (403, 404), "grpc": ("PERMISSION_DENIED", "NOT_FOUND")}[wire]
    for verb in ("load", "unload"):
        found = [machine.manage(1, verb, wire, key=key) for key in ("caller", "theirs")]
        assert tuple(found) == refusals
    assert not (machine.planes[0].home / "run" / "wishes.json").exists()
    assert machine.states() == ["ready", "ready"]


def test_a_new_worker_does_what_its_predecessor_was_told(machine: Machine) -> None:
    assert machine.manage(0, "unload", "rest") == 200
    machine.become("cold", "cold")
    machine.planes[1].workers[1].kill()
    machine.planes[1].workers[1].wait()
    assert machine.manage(0, "load", "rest") == 200
    machine.start(1)
    machine.become("ready", "ready")
    assert machine.manage(1, "unload", "grpc") == "OK"
    machine.become("cold", "cold")
    for _ in range(2):
        machine.planes[1].workers[1].kill()
        machine.planes[1].workers[1].wait()
        machine.planes[1].start(1)
        machine.become("cold", "cold")
        machine.agree("READY", True)
        assert machine.infer(1) == 200


def test_a_wish_is_about_the_packages_that_were_there(machine: Machine) -> None:
    """Neither what is deployed later nor what another tenant serves leaves."""
    first, second = machine.planes
    assert machine.manage(1, "unload", "rest") == 200
    machine.become("cold", "cold")
    new = packages.regressor(first.home, 2.0)
    both = (endpoint("sum", new, 2), endpoint("sum", machine.package, tenant="other"))
    first.plan(*both, packages=(new, machine.package), keys=KEYS)
    for index, plane in enumerate(machine.planes):
        plane.applied(first.number, index)
        plane.workers[index].kill()
        plane.workers[index].wait()
        machine.start(index)
    assert machine.states() == machine.states(new) == ["ready", "ready"]
    assert machine.infer(0) == machine.infer(1) == 200
    assert second.call("POST", "/v2/models/sum/infer", BODY, key="theirs").status == 200


def test_a_package_that_is_damaged_is_told_of_by_all(machine: Machine) -> None:
    path = machine.planes[0].home / "blobs" / machine.package.key / "model.onnx"
    whole = path.read_bytes()
    assert machine.manage(0, "unload", "rest") == 200
    machine.become("cold", "cold")
    path.write_bytes(bytes(reversed(whole)))
    assert machine.manage(1, "load", "rest") == 503
    machine.become("failed", "failed")
    machine.agree("UNAVAILABLE", False)
    path.write_bytes(whole)
    assert machine.manage(0, "load", "grpc") == "OK"
    machine.agree("READY", True)


def test_what_is_idle_or_has_no_room_leaves_all_the_same(new_plane: Callable[..., Plane]) -> None:
    """A model that was loaded is not kept against scale to zero, nor against the budget."""
    first, second = new_plane(resident_memory=1), new_plane(resident_memory=1)
    second.home = first.home
    made = [packages.regressor(first.home, float(number)) for number in (1, 2)]
    idle = Options(idle=0.2)
    first.plan(
        EndpointPlan("ep-one", "default", "one", endpoint("one", made[0]).variants, options=idle),
        endpoint("two", made[1]),
        packages=tuple(made),
        keys=KEYS,
    )
    machine = Machine((first, second), made[0])
    for index in (0, 1):
        machine.start(index)
    for name, wire in (("two", "rest"), ("one", "grpc"), ("two", "grpc"), ("one", "rest")):
        assert machine.manage(len(name) % 2, "load", wire, name) == GOOD[wire]
        assert [machine.infer(index, name) for index in (0, 1)] == [200, 200]
    machine.become("cold", "cold")
    for index in (0, 1):
        assert machine.infer(index, "one") == 200


def test_wishes_for_what_is_gone_are_forgotten(machine: Machine) -> None:
    first = machine.planes[0]
    for number in range(3):
        name = f"e{number}"
        first.plan(endpoint(name, machine.package), packages=(machine.package,), keys=KEYS)
        for index, plane in enumerate(machine.planes):
            plane.applied(first.number, index)
        assert machine.manage(number % 2, "unload", "rest", name) == 200
        kept = msgspec.json.decode(Path(first.home / "run" / "wishes.json").read_bytes())
        assert list(kept["endpoints"]) == [f"ep-default-{name}"]
        assert kept["number"] == number + 1


def test_what_is_asked_later_does_not_say_that_all_before_it_is_done(tmp_path: Path) -> None:
    class Endless:
        """An engine of two endpoints, whose loads end, or fail, as they are told."""

        arrived: Any = None

        def __init__(self) -> None:
            self.loads: dict[str, asyncio.Future[None]] = {}

        def endpoints(self) -> list[Any]:
            plans = [SimpleNamespace(id=name) for name in ("slow", "other")]
            return [SimpleNamespace(plan=plan, models=[plan]) for plan in plans]

        async def load(self, endpoint: Any) -> None:
            self.loads[endpoint.plan.id] = future = asyncio.get_running_loop().create_future()
            await future

    async def main() -> None:
        slots, engine = Slots(tmp_path / "slots"), Endless()
        given: Any = (Settings(home=tmp_path), slots, slots.region(0), engine)
        worker = Repository(*given)
        wishlist = Wishlist(tmp_path / "run")
        for name in ("slow", "other"):
            wishlist.make(name, loaded=True, packages=[], known={"slow", "other"})
            worker.look()
            await until(lambda name=name: name in engine.loads)  # type: ignore[misc]
        refusal = TapsterError("unavailable", "gone")
        engine.loads["other"].set_exception(refusal)
        await asyncio.sleep(0.05)
        assert slots.state(0, layout.WISHES) == 0
        engine.loads["slow"].set_exception(refusal)
        seen = []
        for number in (1, 2):
            await until(lambda number=number: slots.state(0, layout.WISHES) >= number)  # type: ignore[misc]
            seen.append(slots.state(0, layout.UNMET))
        assert seen == [1, 2]

    (tmp_path / "run").mkdir()
    go(main)
