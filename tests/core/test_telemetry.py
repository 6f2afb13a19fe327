"""Log lines: what callers send cannot forge or break one, secrets never stand in one."""

import json
import logging
import re
import subprocess
import sys
import time

import pytest

from tapster.core import telemetry

KEY = "tap_3vVbJ7cU9dG1mQ5wRkZ0-xYhT_8sLp2N4aEfHiKoQuM"
NASTY = (
    "a\nb",
    "a\r\nb",
    '"}\n{"level":"error"',
    "\x1b[31mred\x1b[0m",
    "\x00",
    "\x7f\x9b31m",
    "a\u2028b\u2029c\x85d",
    "\u202egnp.exe",
    "\ud800",
    "\\n",
    "é ü 漢",
    "x" * 100_000,
)


def line_of(event: str, form: str, error: BaseException | None = None, **fields: object) -> str:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("made", logging.INFO, "", 0, "%s", (event,), info)
    record.fields = fields
    return telemetry.spell(telemetry.document(record, "worker 0"), form)


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("text", NASTY)
def test_a_line_stays_one_line(text: str, form: str) -> None:
    line = line_of("it " + text, form, name=text)
    assert len(line) < 30_000
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]", line)
    assert line.encode()
    if form == "json":
        found = json.loads(line)
        assert list(found) == ["time", "level", "process", "event", "name"]
        assert (found["level"], found["process"]) == ("info", "worker 0")


def test_values_are_numbers_or_texts() -> None:
    found = json.loads(
        line_of("it", "json", a=1, b=2.5, c=None, d=True, e=float("nan"), f=["x\ny"], g=b"z")
    )
    assert {name: found[name] for name in "abcdefg"} == {
        "a": 1,
        "b": 2.5,
        "c": None,
        "d": True,
        "e": "nan",
        "f": "['x\\ny']",
        "g": "b'z'",
    }
    assert line_of("it", "text", a=1, b="x y", c="z").endswith(' it  a=1  b="x y"  c=z')


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_are_blotted_out(form: str) -> None:
    password = "postgresql://me:s3cret:w@rd@db/x"
    try:
        raise ValueError(f"cannot read {KEY} of {password}")
    except ValueError as error:
        line = line_of(f"Authorization: Bearer {KEY}", form, error, url=f"/v2/{KEY}?{password}")
    assert not re.search("3vVb|QuM|s3cret|w@rd", line)
    assert "tap_***" in line
    assert "postgresql://me:***@db" in line
    assert "ValueError" in line
    assert "test_telemetry.py" in line
    assert not re.search("3vVb", line_of(f"Basic {KEY[4:]}", form))


def test_a_traceback_forges_no_line() -> None:
    try:
        raise ValueError("one\n2026-11-21T00:00:00.000Z error   worker 9: forged")
    except ValueError as error:
        text, found = line_of("it", "text", error), json.loads(line_of("it", "json", error))
    lines = text.splitlines()
    assert all(line.startswith("    | ") for line in lines[1:])
    assert len(lines) > 3
    assert found["exception"].splitlines() == [line[6:] for line in lines[1:]]


SCRIPT = """
import logging, sys, time, warnings, threading
from tapster.core import telemetry
telemetry.configure("info", "auto", "made")
log = telemetry.logger("made")
began = time.perf_counter()
for number in range(int(sys.argv[1])):
    log.info("it", number=number, more="x" * 200)
print(time.perf_counter() - began, flush=True)
sys.stdin.read()
logging.getLogger().handlers[0].flush()
log.debug("unseen")
warnings.warn("beware")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("the\\nend")
"""


def test_a_log_that_nobody_reads_holds_nobody_up() -> None:
    count = 30_000
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert float(process.stdout.readline()) < 60  # half a second, and much else to do
        process.stdin.close()
        lines = [json.loads(line) for line in process.stderr]
    assert process.returncode == 1
    events = [line["event"] for line in lines]
    dropped = [line["count"] for line in lines if line["event"] == "log lines were dropped"]
    assert events.count("it") + sum(dropped) >= count
    assert 0 < sum(dropped) < count
    last = [line for line in lines if line["event"] not in {"it", "log lines were dropped"}]
    assert [line["event"][-30:] for line in last if "beware" not in line["event"]] == [
        "uncaught exception",
        "uncaught exception",
    ]
    assert any("beware" in line["event"] for line in last)
    assert [line["exception"].splitlines()[-1] for line in last if "exception" in line] == [
        "ZeroDivisionError: division by zero",
        "end",
    ]


def test_times_are_utc() -> None:
    record = logging.LogRecord("made", logging.INFO, "", 0, "it", (), None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    assert telemetry.document(record, "x")["time"] == "2023-11-14T22:13:20.250Z"
    assert time.gmtime(1_700_000_000).tm_hour == 22
