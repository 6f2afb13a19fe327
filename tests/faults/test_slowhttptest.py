"""What slowhttptest, which others wrote, finds: a server that stays available."""

import re
import subprocess
from collections.abc import Callable

import pytest

from tests.clients.debian import command
from tests.faults.scenarios import models
from tests.faults.scenarios.load import Load, cases, percentile
from tests.serving.conftest import Plane, endpoint

SECONDS = 8
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
ATTACKS = {
    "slow headers": ["-H", "-i", "1", "-u", "/v2"],
    "slow bodies": ["-B", "-i", "1", "-s", "100000", "-t", "POST", "-u", "/v2/models/total/infer"],
    "slow reading": ["-X", "-k", "10", "-w", "512", "-y", "1024", "-n", "1", "-u", "/metrics"],
    "ranges": ["-R", "-t", "HEAD", "-a", "10", "-b", "3000", "-u", "/v2"],
}


@pytest.mark.system
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_server_stays_available(new_plane: Callable[..., Plane], attack: str) -> None:
    plane = new_plane(receive_timeout=3.0, no_auth="true")
    package = models.seal(plane.home, models.total(0.0))
    plane.plan(endpoint("total", package), packages=(package,))
    plane.start()
    plane.applied()
    *options, path = ATTACKS[attack]
    url = f"http://127.0.0.1:{plane.port}{path}"
    size = ["-c", "2000", "-r", "1000", "-l", str(SECONDS), "-p", "3"]
    with Load(plane.port, cases("total"), rate=50.0, connections=100) as load:
        load.more(20)
        done = subprocess.run(
            [command("slowhttptest", "slowhttptest"), *options, url, *size],
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS + 60,
        )
        load.more(20)
    said = COLOURS.sub("", done.stdout)
    assert set(re.findall(r"service available:\s*(\w+)", said)) == {"YES"}, said[-2000:]
    assert [*load.wrong, *load.broken] == []
    assert load.refused == 0
    assert {answer.status for answer in load.answers} == {200}
    assert percentile([answer.took for answer in load.answers], 0.5) < 0.5
