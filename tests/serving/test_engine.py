"""Plans made true: switching under load, refused packages, restarts, shutdown, deadlines."""

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tapster.contract.manifest import SIGNATURE
from tapster.contract.plan import Options, PackageRef
from tapster.core.crypto import Signer
from tapster.runtimes.package import sign
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, grant, read_all, request, wait_for
from tests.serving.loads import BODY, INFER, Load


def made(plane: Plane, count: int) -> list[PackageRef]:
    return [packages.regressor(plane.home, float(number + 1)) for number in range(count)]


def test_switching_loses_and_mixes_up_nothing(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    refs = made(plane, 4)
    plane.plan(endpoint("sum", refs[0], 1), packages=(refs[0],))
    plane.start()
    plane.applied()
    with Load(plane) as load:
        load.more(200)
        for number in range(1, 8):
            old, new = refs[(number - 1) % 4], refs[number % 4]
            plane.plan(endpoint("sum", old, number), packages=(old, new))
            state = plane.applied()
            assert {p.digest: p.state for p in state.packages} == {
                old.digest: "ready",
                new.digest: "ready",
            }
            plane.plan(endpoint("sum", new, number + 1), packages=(new,))
            plane.applied()
            load.more(200)
    assert load.failures == []
    wanted = {(200, str(n + 1), 6.0 + refs_bias(n % 4)) for n in range(8)}
    assert set(load.seen) == wanted


def refs_bias(index: int) -> float:
    return index + 1.0


def test_a_bad_package_never_takes_traffic(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    good = packages.regressor(plane.home, 1.0)
    other = packages.regressor(plane.home, 2.0)
    spoiled = packages.regressor(plane.home, 3.0, spoil=True)
    flipped = packages.regressor(plane.home, 4.0)
    gone = PackageRef(digest="0" * 64, key=f"default/packages/{'0' * 64}")
    stranger = packages.regressor(plane.home, 5.0)
    sign(plane.home / "blobs" / stranger.key, Signer(bytes(32)))
    unsigned = packages.regressor(plane.home, 6.0)
    (plane.home / "blobs" / unsigned.key / SIGNATURE).unlink()
    refused = (
        (spoiled, "recorded answers"),
        (flipped, "altered"),
        (gone, "gone"),
        (stranger, "not trusted"),
        (unsigned, "not signed"),
    )
    path = plane.home / "blobs" / flipped.key / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    plane.plan(endpoint("sum", good), packages=(good,))
    plane.start()
    plane.applied()
    with Load(plane, clients=2) as load:
        for bad, words in refused:
            plane.plan(endpoint("sum", good), packages=(good, bad))
            state = {p.digest: p for p in plane.applied().packages}
            assert state[bad.digest].state == "failed"
            assert words in state[bad.digest].error
            assert str(plane.home) not in state[bad.digest].error
            plane.plan(endpoint("sum", bad, 2), packages=(good, bad))
            plane.applied()
            load.more(20)
        plane.plan(endpoint("sum", other, 3), packages=(other,))
        plane.applied()
        load.more(20)
    assert load.failures == []
    assert set(load.seen) == {(200, "1", 7.0), (200, "3", 8.0)}


def test_a_refused_package_is_tried_again_when_a_newer_plan_names_it(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    path = plane.home / "blobs" / package.key / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    plane.plan(packages=(package,))
    plane.start()
    assert plane.applied().packages[0].state == "failed"
    path.write_bytes(whole)
    plane.plan(packages=(package,))
    assert plane.applied().packages[0].state == "ready"


def test_an_endpoint_without_a_model_says_so(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    spoiled = packages.regressor(plane.home, 1.0, spoil=True)
    plane.plan(endpoint("sum", spoiled), packages=(spoiled,))
    plane.start()
    plane.applied()
    answer = plane.call("POST", INFER, BODY)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert plane.call("GET", "/v2/models/sum/ready").status == 503


def test_keys_follow_the_plan_on_open_connections(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,), keys=(grant(KEY), grant("b")))
    plane.start()
    plane.applied()
    with plane.connect() as line:
        line.sendall(request(INFER, BODY, key="b"))
        assert b" 200 " in line.recv(10_000)
        plane.plan(endpoint("sum", package), packages=(package,), keys=(grant(KEY),))
        plane.applied()
        line.sendall(request(INFER, BODY, key="b"))
        assert b" 401 " in line.recv(10_000)


def test_a_plan_that_is_not_ours_is_ignored(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    path = plane.home / "run" / "plan.sealed"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().replace(b'"name":"sum"', b'"name":"mum"'))
    plane.start()
    wait_for(lambda: plane.call("GET", "/v2/health/live", key=None).status == 200, "life")
    assert plane.call("GET", "/v2/health/ready", key=None).status == 503
    assert plane.call("POST", "/v2/models/mum/infer", BODY).status == 401
    plane.plan(endpoint("sum", package), packages=(package,))
    plane.applied()
    assert plane.call("GET", "/v2/health/ready", key=None).status == 200


def test_a_killed_worker_is_missed_by_nobody_but_its_own(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane(workers=2)
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    for index in (0, 1):
        plane.start(index)
        plane.applied(index=index)
    with Load(plane, clients=4, reconnect=True) as load:
        for index in (0, 1, 0):
            load.more(100)
            plane.workers[index].kill()
            plane.workers[index].wait()
            plane.start(index)
            plane.applied(index=index)
    assert load.failures == []
    assert set(load.seen) == {(200, "1", 7.0)}
    line = next(
        line
        for line in plane.call("GET", "/metrics").body.decode().splitlines()
        if line.startswith(
            'tapster_requests_total{tenant="default",endpoint="sum",version="1",code="2xx"}'
        )
    )
    # What was counted but not read when a worker died, is the only difference there may be.
    assert load.count <= int(line.split()[-1]) <= load.count + 3 * 4 * load.depth + 16


def test_counters_survive_a_kill(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    for _ in range(3):
        plane.start()
        plane.applied()
        for _ in range(5):
            assert plane.call("POST", INFER, BODY).status == 200
        assert plane.call("POST", INFER, b"{").status == 400
        plane.workers[0].kill()
        plane.workers[0].wait()
    plane.start()
    plane.applied()
    text = plane.call("GET", "/metrics").body.decode()
    labels = 'tenant="default",endpoint="sum",version="1"'
    assert f'tapster_requests_total{{{labels},code="2xx"}} 15\n' in text
    assert f'tapster_requests_total{{{labels},code="4xx"}} 3\n' in text
    assert f"tapster_rows_total{{{labels}}} 15\n" in text
    assert f"tapster_request_duration_seconds_count{{{labels}}} 18\n" in text
    assert 'tapster_worker_restarts_total{worker="0"} 3\n' in text


def test_termination_finishes_what_was_asked(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.heavy(plane.home)
    plane.plan(endpoint("slow", package), packages=(package,))
    worker = plane.start()
    plane.applied()
    with plane.connect() as line:
        line.sendall(request("/v2/models/slow/infer", slow_body(600)))
        wait_for(lambda: gauge(plane, "tapster_in_flight_requests") >= 1, "the call to run")
        worker.send_signal(signal.SIGTERM)
        head = line.recv(100)
        assert b" 200 " in head
    assert worker.wait(60) == 0


def test_what_takes_too_long_is_stopped(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    slow, quick = packages.heavy(plane.home), packages.regressor(plane.home, 1.0)
    plane.plan(
        endpoint("slow", slow, options=Options(deadline=0.3)),
        endpoint("sum", quick),
        packages=(slow, quick),
    )
    plane.start()
    plane.applied()
    with ThreadPoolExecutor(6) as pool:
        calls = [
            pool.submit(plane.call, "POST", "/v2/models/slow/infer", slow_body(1500))
            for _ in range(5)
        ]
        with Load(plane, clients=1) as load:
            answers = [call.result() for call in calls]
    assert load.failures == []
    assert load.count > 10
    # Some are refused because those before them make them late.
    assert {504} <= {answer.status for answer in answers} <= {503, 504}
    assert gauge(plane, "tapster_queued_requests") == 0
    wait_for(
        lambda: plane.call("POST", "/v2/models/slow/infer", slow_body(1)).status == 200,
        "a short call to be answered in time",
    )


def test_a_full_queue_is_refused(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.stubborn(plane.home)
    options = Options(queue=100, deadline=600.0)  # nobody is late on a slow machine
    plane.plan(endpoint("slow", package, options=options), packages=(package,))
    plane.start()
    plane.applied()
    one = request("/v1/models/slow:predict", rows_of(1))
    statuses: Counter[int] = Counter()
    lines = [plane.connect() for _ in range(12)]
    lines[0].sendall(request("/v1/models/slow:predict", rows_of(2200)))
    wait_for(lambda: gauge(plane, "tapster_in_flight_requests") >= 1, "the call to run")

    def send(line: socket.socket) -> None:
        line.sendall(one * 119)
        line.shutdown(socket.SHUT_WR)
        answers = read_all(line)
        codes = [int(each[:3]) for each in answers.split(b"HTTP/1.1 ")[1:]]
        with lock:  # a half-closed connection is asked whether it lives by a 100
            statuses.update(code for code in codes if code != 100)

    lock = threading.Lock()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(send, lines[1:]))
    for line in lines:
        line.close()
    assert sum(statuses.values()) == 11 * 119
    assert set(statuses) == {200, 503}
    assert statuses[200] >= 100
    assert statuses[503] > 0


def slow_body(rows: int) -> bytes:
    numbers = ",".join(["0.5"] * (1000 * rows))
    return (
        f'{{"inputs":[{{"name":"numeric","shape":[{rows},1000],"datatype":"FP32",'
        f'"data":[{numbers}]}}]}}'
    ).encode()


def gauge(plane: Plane, name: str) -> float:
    text = plane.call("GET", "/metrics").body.decode()
    return sum(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{")
    )


def test_a_run_that_ignores_its_deadline_costs_its_worker(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    stubborn, quick = packages.stubborn(plane.home), packages.regressor(plane.home, 1.0)
    plane.plan(
        endpoint("stubborn", stubborn, options=Options(deadline=3.0)),  # it is in its cube by then
        endpoint("sum", quick),
        packages=(stubborn, quick),
    )
    worker = plane.start()
    plane.applied()
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        call = pool.submit(plane.call, "POST", "/v1/models/stubborn:predict", rows_of(4000))
        while not call.done():
            assert plane.call("POST", INFER, BODY).status == 200
        assert call.result().status == 504
    assert time.monotonic() - began >= 3.0
    assert worker.poll() is None  # it is given some seconds more to come to its end
    assert worker.wait(60) == 0  # for whoever started it to replace
    plane.start()
    plane.applied()
    answer = plane.call("POST", "/v1/models/stubborn:predict", rows_of(3))
    assert answer.json() == {"outputs": [[1, 1, 1]]}
    assert plane.call("POST", INFER, BODY).status == 200


def rows_of(count: int) -> bytes:
    return json.dumps({"inputs": {"x": [[1] * count]}}).encode()
