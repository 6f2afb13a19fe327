"""Runners that the tests' jobs name; loaded in real job processes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tapster.contract.errors import TapsterError
from tapster.jobs.context import JobContext


def work(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Report, write an output, answer."""
    print("working on", task["word"], flush=True)
    context.progress(0.5, "half", "half way", board=[1, 2])
    (context.output("thing") / "word").write_text(task["word"])
    return {"word": task["word"].upper()}


def refuse(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Fail for a reason the user can act on."""
    raise TapsterError("unprocessable", "the target is constant", hint="choose another")


def crash(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Fail for no good reason."""
    raise RuntimeError("/secret/path")


def die(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Be killed, until the attempt that the task says."""
    marks = Path(task["marks"])
    with marks.open("a") as file:
        file.write("x")
    if len(marks.read_text()) < task["until"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"attempts": len(marks.read_text())}


def hang(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Never end; say where we are."""
    Path(task["pid_file"]).write_text(str(os.getpid()))
    context.progress(0.1, "hanging")
    while True:
        time.sleep(0.05)


def wait(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """End when a file is there."""
    context.progress(0.1, "waiting")
    while not Path(task["until"]).exists():
        time.sleep(0.02)
    context.output("thing")
    context.progress(1.0, "over", over=True)
    return {}


def eat(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Eat memory."""
    held = []
    while True:
        held.append(b"x" * (20 << 20))
        time.sleep(0.01)
