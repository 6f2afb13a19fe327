"""The agent against a control plane that is real HTTP: pulling, reporting, its death."""

from collections.abc import Callable

from tapster.contract.plan import ServingPlan
from tapster.contract.snapshots import unpack
from tests.serving import packages
from tests.serving.conftest import AGENT_KEY, KEY, SIGNERS, Plane, endpoint, grant, wait_for
from tests.serving.control import Control
from tests.serving.loads import BODY, INFER


def test_a_plan_comes_down_and_usage_goes_up(
    new_plane: Callable[..., Plane], control: Control
) -> None:
    port = control.start()
    plane = new_plane(port=port, workers=2)
    package = packages.regressor(plane.home, 1.0)
    for index in (0, 1):
        plane.start(index)
    wait_for(lambda: plane.call("GET", "/v2/health/ready", key=None).status == 200, "readiness")
    control.plan = ServingPlan(2, (), (package,), (grant(KEY),), SIGNERS)

    def all_at(number: int) -> bool:
        newest = control.newest()
        return (
            newest is not None
            and [w.worker for w in newest.workers] == [0, 1]
            and all(
                w.plan == number and [p.state for p in w.packages] == ["ready"]
                for w in newest.workers
            )
        )

    wait_for(lambda: all_at(2), "both workers to be ready for plan 2")
    control.plan = ServingPlan(3, (endpoint("sum", package),), (package,), (grant(KEY),), SIGNERS)
    wait_for(lambda: all_at(3), "both workers to apply plan 3")
    assert {worker.pid for worker in control.reports[-1].workers} == {
        process.pid for process in plane.workers.values()
    }
    for _ in range(7):
        assert plane.call("POST", INFER, BODY).status == 200
    assert plane.call("POST", INFER, b"{").status == 400

    def metered() -> bool:
        totals = {
            (segment.id, count.record): (count.requests, count.rows, count.errors)
            for report in control.reports
            for segment in (report.ledger.segments if report.ledger is not None else ())
            for count in segment.counts
            if (count.line.endpoint, count.line.key) == ("ep-default-sum", f"id-{KEY}")
        }
        return tuple(map(sum, zip(*totals.values(), strict=True))) == (7, 7, 1)

    wait_for(metered, "the usage to be reported")

    # The control plane dies: nobody notices; a worker that is killed comes back without it.
    control.stop()
    for index in (0, 1):
        plane.workers[index].kill()
        plane.workers[index].wait()
        assert plane.call("POST", INFER, BODY).status == 200 if index == 0 else True
        plane.start(index)
        plane.applied(3, index)
    assert plane.call("POST", INFER, BODY).status == 200

    # It returns, with other numbers: whoever is the agent now finds out.
    control.plan = ServingPlan(1, (endpoint("sum", package),), (package,), (grant("new"),), SIGNERS)
    control.reports.clear()
    control.start(port)
    wait_for(lambda: plane.call("POST", INFER, BODY, key="new").status == 200, "the new plan")
    wait_for(lambda: all_at(1), "the new plan to be reported")
    assert control.refusals == 0


def test_a_refused_agent_serves_on(new_plane: Callable[..., Plane], control: Control) -> None:
    port = control.start()
    plane = new_plane(port=port)
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    (plane.home / "agent.key").write_bytes(b"another")
    plane.start()
    wait_for(lambda: control.refusals > 1, "a refusal")
    assert control.reports == []
    assert plane.call("GET", "/v2/health/live", key=None).status == 200
    (plane.home / "agent.key").write_bytes(AGENT_KEY)
    control.plan = ServingPlan(9, (endpoint("sum", package),), (package,), (grant(KEY),), SIGNERS)
    wait_for(lambda: plane.call("POST", INFER, BODY).status == 200, "the plan")


def test_machines_of_one_host_name_are_told_apart(
    new_plane: Callable[..., Plane], control: Control
) -> None:
    """Clones are called alike; what one reports must not stand for the other."""
    port = control.start()
    for _ in range(2):
        new_plane(port=port).start()
    wait_for(lambda: len({each.agent for each in control.reports if each.workers}) == 2, "both")


def test_the_plan_is_saved_for_its_owner_only(
    new_plane: Callable[..., Plane], control: Control
) -> None:
    plane = new_plane(port=control.start())
    plane.start()
    path = plane.home / "run" / "plan.sealed"
    wait_for(path.exists, "the plan to be saved")
    assert path.stat().st_mode & 0o777 == 0o600
    assert unpack(path.read_bytes()[32:]).plan.number == 1
