"""Models that leave the memory and come back: within a budget, when idle, when told to."""

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from tapster.contract.plan import Options, PackageRef, ServingPlan
from tapster.contract.snapshots import Snapshot, pack, unpack
from tapster.core.blobs import LocalBlobs
from tapster.core.settings import Settings
from tapster.serving.costs import Cost
from tapster.serving.engine import Engine
from tapster.serving.gate import Gate
from tapster.serving.loading import Loader
from tapster.serving.model import COLD, FAILED, READY, Loaded, Model, Opening
from tapster.serving.residency import Residency
from tapster.serving.slots import Slots
from tests.serving import packages
from tests.serving.conftest import SIGNERS, Plane, endpoint, wait_for
from tests.serving.doubles import LIMIT, Bench, Double, Held, go, until

BODY = {
    "inputs": [{"name": "numeric", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}]
}


def states(plane: Plane) -> dict[str, str]:
    state = plane.state()
    return {p.digest: p.state for p in state.packages} if state else {}


def called(plane: Plane, name: str) -> float:
    answer = plane.call("POST", f"/v2/models/{name}/infer", BODY)
    assert answer.status == 200, answer.body
    value: float = answer.json()["outputs"][0]["data"][0]
    return value


def serve(plane: Plane, count: int) -> list[PackageRef]:
    """Endpoints m0, m1 ... whose models add their number to the sum of a row."""
    refs = [packages.regressor(plane.home, float(number)) for number in range(count)]
    plane.plan(
        *(endpoint(f"m{number}", ref) for number, ref in enumerate(refs)), packages=tuple(refs)
    )
    plane.start()
    plane.applied()
    return refs


def test_the_least_recently_used_leave_when_there_is_no_room(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane(resident_memory=1)
    refs = serve(plane, 4)
    wait_for(lambda: Counter(states(plane).values()) == {"ready": 1, "cold": 3}, "three to leave")
    for number in (2, 0, 3, 0, 1, 2, 2):
        assert called(plane, f"m{number}") == 6.0 + number
        wait_for(
            lambda number=number: (  # type: ignore[misc]
                Counter(states(plane).values()) == {"ready": 1, "cold": 3}
                and states(plane)[refs[number].digest] == "ready"
            ),
            "the last one called to be there alone",
        )


def test_without_a_limit_all_stay(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    serve(plane, 4)
    for number in range(4):
        assert called(plane, f"m{number}") == 6.0 + number
    assert set(states(plane).values()) == {"ready"}


def test_nothing_is_lost_while_models_push_each_other_out(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane(resident_memory=1)
    serve(plane, 5)

    def ask(turn: int) -> tuple[int, float]:
        number = turn * 7 % 5
        return number, called(plane, f"m{number}")

    with ThreadPoolExecutor(8) as pool:
        seen = Counter(pool.map(ask, range(400)))
    assert set(seen) == {(number, 6.0 + number) for number in range(5)}
    assert sum(seen.values()) == 400


def test_what_is_idle_for_long_leaves_and_comes_back(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    idle, both, never = (packages.regressor(plane.home, float(n)) for n in range(3))
    plane.plan(
        endpoint("idle", idle, options=Options(idle=0.3)),
        endpoint("one", both, options=Options(idle=0.3)),
        endpoint("other", both),
        endpoint("never", never),
        packages=(idle, both, never),
    )
    plane.start()
    plane.applied()
    for _ in range(2):
        wait_for(lambda: states(plane)[idle.digest] == "cold", "the idle model to leave")
        assert plane.call("GET", "/v2/models/idle").status == 200
        assert plane.call("GET", "/v2/models/idle/ready").status == 200
        assert called(plane, "idle") == 6.0
    assert states(plane)[both.digest] == states(plane)[never.digest] == "ready"


def test_what_has_left_comes_back_from_where_its_package_is_now(
    new_plane: Callable[..., Plane],
) -> None:
    """Two tenants have the same package; the one that it was loaded from is no more."""
    plane = new_plane()
    first = packages.regressor(plane.home, 1.0)
    other = PackageRef(first.digest, f"other/packages/{first.digest}")
    blobs = plane.home / "blobs"
    shutil.copytree(blobs / first.key, blobs / other.key)
    serving = endpoint("idle", first, options=Options(idle=0.2))
    plane.plan(serving, packages=(first,))
    plane.start()
    plane.applied()
    plane.plan(serving, packages=(other,))
    plane.applied()
    shutil.rmtree(blobs / first.key)
    wait_for(lambda: states(plane)[first.digest] == "cold", "the model to leave")
    assert called(plane, "idle") == 7.0


def test_a_package_that_moves_while_it_is_loaded_comes_back_from_where_it_is(
    tmp_path: Path,
) -> None:
    first = packages.regressor(tmp_path, 1.0)
    other = PackageRef(first.digest, f"other/packages/{first.digest}")
    blobs = tmp_path / "blobs"
    model = Model(first)
    loaded = Loaded(first, Opening(LocalBlobs(blobs), SIGNERS))
    shutil.copytree(blobs / first.key, blobs / other.key)
    model.moved(other)

    async def main() -> None:
        model.ready(loaded, Bench(tmp_path, Double(), loaded.cost).batcher)

    go(main)
    shutil.rmtree(blobs / first.key)
    again = model.loaded.reload()
    assert again.run({"numeric": np.ones((1, 3), np.float32)}, ["prediction"])[0].tolist() == [4.0]


def test_a_package_that_moves_before_it_is_loaded_is_loaded_from_where_it_is(
    tmp_path: Path,
) -> None:
    first = packages.regressor(tmp_path, 1.0)
    other = PackageRef(first.digest, f"other/packages/{first.digest}")
    blobs = tmp_path / "blobs"
    moved = threading.Event()

    class Slow(LocalBlobs):
        def get(self, key: str) -> Path:
            assert moved.wait(LIMIT)
            return super().get(key)

    def snapshot(number: int, package: PackageRef) -> Snapshot:
        endpoints = (endpoint("sum", package),)
        return unpack(pack(ServingPlan(number, endpoints, (package,), (), SIGNERS)))

    async def main() -> None:
        slots = Slots(tmp_path / "slots")
        engine = Engine(
            slots,
            slots.region(0),
            Gate(True),
            Slow(blobs),
            Settings(home=tmp_path),
            changed=lambda: None,
            stuck=lambda: None,
        )
        engine.apply(snapshot(1, first))
        (blobs / other.key).parent.mkdir(parents=True)
        (blobs / first.key).rename(blobs / other.key)
        engine.apply(snapshot(2, other))
        moved.set()
        await until(lambda: engine.current)
        assert [(state.state, state.error) for state in engine.states()] == [("ready", "")]

    go(main)


def test_a_package_damaged_meanwhile_is_refused_and_tried_again(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane(resident_memory=1)
    refs = serve(plane, 2)
    cold = next(number for number, ref in enumerate(refs) if states(plane)[ref.digest] == "cold")
    path = plane.home / "blobs" / refs[cold].key / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(bytes(reversed(whole)))
    for _ in range(2):
        answer = plane.call("POST", f"/v2/models/m{cold}/infer", BODY)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert b"cannot be loaded again" in answer.body
        assert str(plane.home).encode() not in answer.body
    wait_for(lambda: states(plane)[refs[cold].digest] == "failed", "the state to be told")
    assert called(plane, f"m{1 - cold}") == 7.0 - cold
    path.write_bytes(whole)
    endpoints = (endpoint(f"m{number}", ref) for number, ref in enumerate(refs))
    plane.plan(*endpoints, packages=tuple(refs))
    wait_for(lambda: states(plane)[refs[cold].digest] in {"ready", "cold"}, "another try")
    assert called(plane, f"m{cold}") == 6.0 + cold


def test_models_come_and_go_as_they_are_told(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    (ref,) = serve(plane, 1)
    path = "/v2/repository/models/m0"
    for _ in range(3):
        assert plane.call("POST", f"{path}/unload").status == 200
        wait_for(lambda: states(plane)[ref.digest] == "cold", "the model to leave")
        assert plane.call("POST", f"{path}/load").status == 200
        wait_for(lambda: states(plane)[ref.digest] == "ready", "the model to be back")
    assert plane.call("POST", f"{path}/unload").status == 200
    assert called(plane, "m0") == 6.0


def test_what_is_asked_for_as_it_is_retired_goes_all_the_same(tmp_path: Path) -> None:
    """Who asks has waited for the wish to be written, and the endpoint was deleted meanwhile."""

    async def main() -> None:
        double = Held()
        model = Model(PackageRef("0" * 64, "default/packages/0"))
        bench = Bench(tmp_path, double, Cost(1e-3, 1e-3))
        model.batcher, model.state = bench.batcher, READY
        model.loaded = cast("Any", SimpleNamespace(memory=5))
        residency = Residency(Loader(asyncio.get_running_loop()), 0, lambda: None)
        residency.add(model)
        last = bench.ask(1)
        await until(lambda: double.sizes == [1])
        residency.retire(model)
        await residency.load([model])
        double.let()
        await until(lambda: double.closed)
        assert (residency.memory, last.body) == (0, b"[2.0]")

    go(main)


def test_who_is_tried_again_is_not_reported_by_what_became_of_the_last_try(tmp_path: Path) -> None:
    """A deployment beside it would be refused for that."""

    async def main() -> None:
        model = Model(PackageRef("0" * 64, "default/packages/0"))
        bench = Bench(tmp_path, Double(), Cost(1e-3, 1e-3))
        model.batcher, model.state = bench.batcher, READY
        tries = [OSError("the disk was away")]
        again = threading.Event()

        def reload() -> Double:
            if tries:
                raise tries.pop()
            assert again.wait(LIMIT)
            return Double()

        model.loaded = cast("Any", SimpleNamespace(memory=5, reload=reload))
        residency = Residency(Loader(asyncio.get_running_loop()), 0, lambda: None)
        residency.add(model)
        residency.unload(model)
        asked = bench.ask(1)
        await until(lambda: asked.error is not None)
        assert model.state == FAILED
        residency.retry(model)
        assert (model.state, model.error) == (COLD, "")
        again.set()
        await until(lambda: model.state == READY)

    go(main)


def test_what_is_gone_from_the_plan_goes_whatever_its_state(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane(resident_memory=1)
    refs = serve(plane, 3)
    for _ in range(3):
        plane.plan(endpoint("m0", refs[0]), packages=(refs[0],))
        plane.applied()
        assert set(states(plane)) == {refs[0].digest}
        plane.plan(
            *(endpoint(f"m{number}", ref) for number, ref in enumerate(refs)),
            packages=tuple(refs),
        )
        plane.applied()
        assert [called(plane, f"m{number}") for number in range(3)] == [6.0, 7.0, 8.0]
