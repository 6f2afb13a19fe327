"""Models that crash, hang, hoard and lie, each in real processes of its own."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE
from tapster.runtimes import Stop
from tapster.runtimes.isolated import MIB, model, process, surroundings
from tapster.runtimes.isolated.model import Isolated, Rest
from tests.faults.soak import SOAK
from tests.runtimes.isolated.conftest import Start, left_behind, processes
from tests.runtimes.isolated.models import CODES, echo, wild

LIMIT = 30.0
ONE = np.ones((1, 2), np.float32)


def within(seconds: float = LIMIT) -> float:
    return time.monotonic() + seconds


def ask(isolated: Isolated, deed: str = "", seconds: float = LIMIT) -> Any:
    """The answer to a row that makes the model do a deed, or double it."""
    row = np.array([[CODES[deed] if deed else 1.0, 1.0]], np.float32)
    return isolated.run({"x": row}, ["y"], within(seconds))[0]


def refusal(isolated: Isolated, deed: str, seconds: float = LIMIT) -> TapsterError:
    with pytest.raises(TapsterError) as caught:
        ask(isolated, deed, seconds)
    said = caught.value.message + caught.value.hint
    assert "/srv" not in said
    assert "model.py" not in said
    assert "secret" not in said
    return caught.value


def works(isolated: Isolated) -> bool:
    return bool(ask(isolated).tolist() == [[2.0, 2.0]])


# -- answers


@pytest.mark.parametrize("size", [3, 60_000])
@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT64", "FP16", "BF16", "FP64", "BYTES"])
def test_tensors_come_back_as_they_went(
    start: Start, tmp_path: Path, datatype: Any, size: int
) -> None:
    isolated = start(echo(tmp_path / "m", datatype, 2))
    for shape in ((size, 2), (0, 2), (1, 1)):
        count = shape[0] * shape[1]
        x: Any = np.arange(count) % 2 if datatype == "BOOL" else np.arange(count) % 120
        if datatype == "BYTES":
            x = np.array([f"Straße {n}" for n in x] or [], np.object_)
        x = x.astype(NUMPY_TYPE[datatype]).reshape(shape)
        for given in (x, x[::-1]):
            (y,) = isolated.run({"x": given}, ["y"], within())
            assert y.dtype == given.dtype
            assert y.shape == given.shape
            assert np.array_equal(y, given)
            assert y.flags.writeable


def test_answers_are_the_callers_own(start: Start, tmp_path: Path) -> None:
    isolated = start(echo(tmp_path / "m", "FP32", 1))
    rounds = [np.full(50_000, n, np.float32) for n in range(3)]
    answers = [isolated.run({"x": x}, ["y"], within())[0] for x in rounds]
    assert [set(answer.tolist()) for answer in answers] == [{0.0}, {1.0}, {2.0}]


def test_inputs_and_outputs_are_checked_before_the_model_sees_them(
    start: Start, tmp_path: Path
) -> None:
    isolated = start(wild(tmp_path / "m"))
    wrong: list[tuple[Any, list[str]]] = [
        ({}, ["y"]),
        ({"x": ONE.astype(np.float64)}, ["y"]),
        ({"x": ONE[0]}, ["y"]),
        ({"x": ONE, "z": ONE}, ["y"]),
        ({"x": ONE}, ["z"]),
    ]
    for inputs, outputs in wrong:
        with pytest.raises(TapsterError) as caught:
            isolated.run(inputs, outputs, within())
        assert caught.value.code == "invalid"


def test_as_many_runs_at_once_as_there_are_instances(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"), instances=3)
    assert len(isolated.pids) == isolated.concurrency == 3
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: ask(isolated, "nap pid"), range(3)))
    assert {int(answer[0, 0]) for answer in answers} == {pid % 2**20 for pid in isolated.pids}


# -- deaths


@pytest.mark.parametrize(
    ("deed", "cause"),
    [
        ("segfault", "it died of signal 11 (SIGSEGV)"),
        ("abort", "it died of signal 6 (SIGABRT)"),
        ("exit", "it ended by itself with exit code 3"),
        ("leave", "it ended by itself with exit code 4"),
        ("end slowly", "it ended by itself with exit code 5"),
        ("kill", "it was killed (signal 9)"),
        ("scribble", "it said something that is no answer"),
        ("hang up", "it hung up"),
    ],
)
def test_a_death_fails_its_own_run_and_is_made_good(
    start: Start, tmp_path: Path, deed: str, cause: str
) -> None:
    isolated = start(wild(tmp_path / "m"), instances=2)
    with ThreadPoolExecutor(1) as thread:
        beside = thread.submit(ask, isolated, "nap")
        error = refusal(isolated, deed)
        assert beside.result().shape == (1, 2)
    assert error.code == "unavailable"
    assert cause in error.message
    assert works(isolated)


@pytest.mark.parametrize("deed", ["sleep", "spin"])
def test_a_run_ends_at_its_deadline_whatever_the_model_does(
    start: Start, tmp_path: Path, deed: str
) -> None:
    isolated = start(wild(tmp_path / "m"))
    before = isolated.pids
    began = time.monotonic()
    assert refusal(isolated, deed, 0.3).code == "deadline"
    assert 0.3 <= time.monotonic() - began < 5.0
    assert works(isolated)
    assert isolated.pids != before


def test_a_deadline_that_is_past_runs_nothing(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"))
    before = isolated.pids
    assert refusal(isolated, "segfault", -1.0).code == "deadline"
    assert works(isolated)
    assert isolated.pids == before


def test_a_caller_in_a_hurry_does_not_end_the_process(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"))
    before = isolated.pids
    ask(isolated, "nap")
    for _ in range(3):
        assert refusal(isolated, "nap", 0.05).code == "deadline"
        assert works(isolated)
    assert isolated.pids == before


def test_a_process_that_answers_as_it_is_given_up_is_free_once(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated = start(wild(tmp_path / "m"))
    before = isolated.pids
    ask(isolated, "nap")
    give_up = process.Process._left_alone

    def slowly(self: process.Process, *given: Any) -> TapsterError:
        error = give_up(self, *given)
        time.sleep(1.0)  # meanwhile its keeper hears the answer, and offers it again
        return error

    with monkeypatch.context() as patched:
        patched.setattr(process.Process, "_left_alone", slowly)
        assert refusal(isolated, "nap", 0.05).code == "deadline"
    assert refusal(isolated, "nap", 0.05).code == "deadline"
    assert works(isolated)
    assert isolated.pids == before


def test_a_run_that_nobody_waits_for_is_left(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"))
    stop = Stop()
    threading.Timer(0.2, stop.call).start()
    row = np.array([[CODES["sleep"], 0]], np.float32)
    with pytest.raises(TapsterError) as caught:
        isolated.run({"x": row}, ["y"], within(), stop)
    assert caught.value.code == "cancelled"
    assert works(isolated)


def test_a_run_without_a_deadline_may_take_as_long_as_a_start(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"), start=2.0)
    with pytest.raises(TapsterError) as caught:
        isolated.run({"x": np.array([[CODES["sleep"]]], np.float32)})
    assert caught.value.code == "deadline"
    assert isolated.run({"x": ONE})[0].tolist() == [[2.0, 2.0]]


# -- memory


@pytest.mark.parametrize("deed", ["hoard", "bomb", "share", "breed"])
def test_memory_beyond_the_limit_is_not_had(start: Start, tmp_path: Path, deed: str) -> None:
    isolated = start(wild(tmp_path / "m"), memory=300 * MIB)
    error = refusal(isolated, deed)
    assert error.code == "unavailable"
    assert "ran out of its memory limit of 300 MiB" in error.message
    assert works(isolated)
    assert processes() == set(isolated.pids)


def test_a_leak_is_mended_between_two_runs(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"), memory=250 * MIB)
    seen = set(isolated.pids)
    end = time.monotonic() + LIMIT
    while len(seen) < 2 and time.monotonic() < end:
        assert ask(isolated, "leak").shape == (1, 2)
        time.sleep(0.15)  # the pause in which a keeper looks
        seen |= set(isolated.pids)
    assert len(seen) > 1


def test_tensors_beyond_the_largest_are_refused(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"), largest=1 * MIB)
    before = isolated.pids
    error = refusal(isolated, "huge")
    assert (error.code, "64 MiB" in error.message) == ("too_large", True)
    with pytest.raises(TapsterError) as caught:
        isolated.run({"x": np.ones((1 << 10, 1 << 10), np.float32)}, ["y"], within())
    assert caught.value.code == "too_large"
    assert works(isolated)
    assert isolated.pids == before


def test_an_answer_beyond_the_largest_does_not_cost_the_next_request(
    start: Start, tmp_path: Path
) -> None:
    """Both sides let go of the memory that the large inputs lay in."""
    isolated = start(wild(tmp_path / "m"), memory=800 * MIB, largest=48 * MIB)
    large = np.full((10 << 10, 1 << 10), CODES["huge"], np.float32)
    with pytest.raises(TapsterError) as caught:
        isolated.run({"x": large}, ["y"], within())
    assert (caught.value.code, "64 MiB" in caught.value.message) == ("too_large", True)
    answer = isolated.run({"x": np.ones((1 << 10, 100), np.float32)}, ["y"], within())[0]
    assert (answer == 2.0).all()


def test_large_segments_are_given_back(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"), memory=800 * MIB)
    assert ask(isolated, "huge").nbytes == 64 * MIB
    assert works(isolated)
    assert left_behind()["segments"] == 0


# -- wrong answers and refusals


@pytest.mark.parametrize(
    ("deed", "code", "words"),
    [
        ("text", "internal", "'y'"),
        ("flat", "internal", "has shape [2]"),
        ("nothing", "internal", "is missing"),
        ("list", "internal", "a list, no dict"),
        ("refuse", "invalid", "no such colour in place.py"),
        ("fail", "internal", "the model failed with KeyError"),
    ],
)
def test_what_is_no_answer_is_an_error(
    start: Start, tmp_path: Path, deed: str, code: str, words: str
) -> None:
    isolated = start(wild(tmp_path / "m"))
    before = isolated.pids
    with pytest.raises(TapsterError) as caught:
        ask(isolated, deed)
    assert caught.value.code == code
    assert words in caught.value.message
    assert ask(isolated, "double").dtype == np.float32
    assert isolated.pids == before


@pytest.mark.parametrize(
    ("load", "code", "words"),
    [
        ("import missing_library", "unprocessable", "not installed here: missing_library"),
        ("raise RuntimeError('broken')", "unprocessable", "RuntimeError: broken"),
        ("ctypes.string_at(0)", "unprocessable", "it died of signal 11"),
        ("os._exit(0)", "unprocessable", "exit code 0"),
        ("bytearray(8 << 30)", "unprocessable", "memory limit of 400 MiB"),
        ("time.sleep(1000)", "unprocessable", "not loaded within 2 s"),
    ],
)
def test_a_model_that_does_not_load_is_refused(
    start: Start, tmp_path: Path, load: str, code: str, words: str
) -> None:
    before = left_behind()
    with pytest.raises(TapsterError) as caught:
        start(wild(tmp_path / "m", load), start=2.0 if "sleep" in load else LIMIT, instances=2)
    assert caught.value.code == code
    assert words in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert left_behind() == before


# -- starting again


def test_the_rests_grow_until_a_process_lives_well() -> None:
    rest, now = Rest(), 100.0
    delays = [rest.after(0.1, now) for _ in range(9)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    rest.cause = "it died of signal 11 (SIGSEGV)"
    error = rest.error(now + 10.5)
    assert error.code == "unavailable"
    assert error.message.endswith("ended 9 times in a row: it died of signal 11 (SIGSEGV)")
    assert "in 20 s" in error.hint
    assert rest.after(model.HEALTHY + 1, now) == 0.0
    assert rest.after(0.1, now) == 0.5


def test_while_a_crash_loop_rests_requests_hear_so_at_once(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "FIRST_REST", 0.3)
    isolated = start(wild(tmp_path / "m"))
    codes = []
    for _ in range(4):
        codes.append(refusal(isolated, "abort").code)
    error = refusal(isolated, "", 0.5)
    assert codes == ["unavailable"] * 4
    assert "ended 4 times in a row" in error.message
    assert "try again" in error.hint
    end = time.monotonic() + LIMIT
    while not isolated.pids and time.monotonic() < end:
        time.sleep(0.05)
    assert works(isolated)


def test_a_process_that_dies_idle_is_replaced(start: Start, tmp_path: Path) -> None:
    isolated = start(wild(tmp_path / "m"))
    seen = set(isolated.pids)
    for _ in range(3):
        os.kill(isolated.pids[0], signal.SIGKILL)
        assert works(isolated)  # no run of it had begun
        seen |= set(isolated.pids)
    assert len(seen) == 4


def kill_over_and_over(start: Start, folder: Path, times: int) -> None:
    before = left_behind()
    isolated = start(wild(folder), instances=4)
    deeds = ["abort", "segfault", "exit", "kill", "child"]

    def kill(turn: int) -> str:
        return refusal(isolated, deeds[turn % len(deeds)]).code

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(kill, range(times))) == ["unavailable"] * times
    assert works(isolated)
    isolated.close()
    isolated.join()
    assert left_behind() == before


def test_kills_leave_nothing_behind(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "FIRST_REST", 0.0)
    kill_over_and_over(start, tmp_path / "m", 30)


@pytest.mark.soak
def test_a_thousand_kills_leave_nothing_behind(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "FIRST_REST", 0.0)
    kill_over_and_over(start, tmp_path / "m", round(1000 * SOAK))


def test_what_is_closed_is_gone(start: Start, tmp_path: Path) -> None:
    before = left_behind()
    isolated = start(wild(tmp_path / "m"))
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(refusal, isolated, "sleep")
        while isolated._free:  # until the run has begun
            time.sleep(0.01)
        isolated.close()
        assert running.result().code == "unavailable"
    isolated.join()
    assert left_behind() == before
    assert "unloaded" in refusal(isolated, "").message


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    folder = wild(tmp_path / "m")
    code = (
        "import os, signal, pathlib\n"
        "from tapster.runtimes.isolated import Limits\n"
        "from tapster.runtimes.isolated.model import Isolated\n"
        f"m = Isolated.of_draft(pathlib.Path({str(folder)!r}), 'python', 'model.py', Limits())\n"
        "print(*m.pids, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    left = [psutil.Process(pid)] if psutil.pid_exists(pid) else []
    _, alive = psutil.wait_procs(left, LIMIT)
    assert (done.returncode, alive) == (-signal.SIGKILL, [])


# -- surroundings


def test_the_process_has_nothing_of_ours(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPSTER_KEY", "tap_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("TAPSTER_DATABASE_URL", "postgresql://u:p@h/d")
    report = tmp_path / "report"
    load = (
        "import json, resource; status = open('/proc/self/status').read(); json.dump({"
        "'environment': dict(os.environ), 'cwd': os.getcwd(),"
        "'there': [n for n in os.listdir('.') if not n.startswith('files-')],"
        "'mode': os.stat('.').st_mode & 0o777, 'stdin': sys.stdin.read(),"
        "'core': resource.getrlimit(resource.RLIMIT_CORE), 'privileges': status,"
        "'oom': open('/proc/self/oom_score_adj').read(), 'umask': os.umask(0o077),"
        "'descriptors': len(os.listdir('/proc/self/fd')), 'arguments': sys.orig_argv},"
        f" open({str(report)!r}, 'w'))"
    )
    isolated = start(wild(tmp_path / "m", load))
    import json

    found = json.loads(report.read_text())
    names = {name for name in found["environment"] if name.startswith(("TAPSTER", "AWS"))}
    assert names == {"TAPSTER_PYTHON_MODELS"}
    assert not any("secret" in value for value in found["environment"].values())
    assert found["environment"]["HOME"] == found["environment"]["TMPDIR"] == found["cwd"]
    assert (found["there"], found["mode"], found["stdin"]) == ([], 0o700, "")
    assert (found["core"], found["umask"], found["oom"].strip()) == ([0, 0], 0o077, "900")
    assert "NoNewPrivs:\t1" in found["privileges"]
    assert found["descriptors"] <= 5  # three of its own, the socket, the folder it lists
    isolated.close()
    isolated.join()
    assert not Path(found["cwd"]).exists()


def test_what_it_prints_is_logged_in_measure(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        isolated = start(wild(tmp_path / "m", "print('loading\\x1b[2J \\x00')"))
        ask(isolated, "print")
        isolated.close()
        isolated.join()
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.endswith("printed: loading?[2J ?") for line in lines)
    counted = [line for line in lines if "printed: line" in line]
    assert 0 < len(counted) <= 200
    dropped = [int(line.split()[-3]) for line in lines if line.endswith("more lines")]
    assert len(counted) + sum(dropped) == 50_000


def test_folders_of_the_dead_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours, left, fresh = (surroundings.Folder() for _ in range(3))
    os.close(left._lock)
    os.close(fresh._lock)
    for folder in (ours, left):
        os.utime(folder.path, (0, 0))
    surroundings.sweep()
    assert [folder.path.exists() for folder in (ours, left, fresh)] == [True, False, True]
    ours.remove()
    assert not ours.path.exists()
