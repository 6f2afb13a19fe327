"""Models that hang, spin, crash or eat memory: nobody feels it but their own callers."""

from collections.abc import Iterator

import pytest

from tests.conftest import Server
from tests.faults.scenarios import misbehaving
from tests.faults.soak import scaled

OUTCOMES = {
    "sleeps": (504, "in time"),
    "spins in C": (504, "in time"),
    "eats memory": (503, "memory"),
    "crashes": (503, "process"),
}
MEMORY = 512 << 20
# A quarter of a second, unless the machine has much else to do.
MARGIN = 3.0


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"TAPSTER_PYTHON_MODELS": "true", "TAPSTER_MODEL_MEMORY": str(MEMORY)}
    server = Server(tmp_path_factory.mktemp("misbehaving") / "home", settings).start()
    misbehaving.prepare(server)
    yield server
    assert server.stop() == 0


@pytest.mark.soak
@pytest.mark.parametrize("deed", misbehaving.DEEDS)
def test_a_model_harms_only_its_own_callers(installation: Server, deed: str) -> None:
    seen = misbehaving.misbehave(installation, deed, round(scaled(5, 1)))
    status, words = OUTCOMES[deed]
    assert seen.statuses == {status}
    assert all(words in message for message in seen.messages)
    assert all(str(installation.home) not in message for message in seen.messages)
    if deed in misbehaving.ENDLESS:
        assert max(seen.took) < misbehaving.DEADLINE + MARGIN
    assert seen.failures == []
    assert seen.neighbours == {200}
    assert seen.same_worker


@pytest.mark.soak
def test_a_graph_that_runs_for_long_ends_at_its_deadline(installation: Server) -> None:
    seen = misbehaving.run_for_long(installation, round(scaled(20, 2)))
    assert seen.statuses == {504}
    assert max(seen.took) < misbehaving.DEADLINE + MARGIN
    assert seen.failures == []
    assert seen.neighbours == {200}


@pytest.mark.soak
def test_an_operator_that_runs_for_long_costs_a_worker_and_no_request(
    installation: Server,
) -> None:
    seen = misbehaving.run_one_operator_for_long(installation)
    assert seen.statuses == {504}
    assert max(seen.took) < misbehaving.DEADLINE + MARGIN
    assert seen.failures == []
    assert seen.neighbours == {200}
    assert not seen.same_worker
