"""Pages as programs: their `python`, `console` and `sh` blocks, run in order in one folder.

A `console` block has commands after `$ ` (continued after `> `) and, below each, what it prints;
a `text` block right after a `python` block is what that prints. `...` stands for anything: in a
line for characters, alone for lines. Spacing and empty lines do not count. A command whose shown
output begins with `error:` must fail with exit code 1 and say that on standard error.

The documented addresses and home stand for those of the server under test. What starts a server
or installs something is left out.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.conftest import Server

FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LEFT_OUT: Final = ("tapster up", "tapster demo", "make ", "pip install", ". .venv", "export ")
SECONDS: Final = 120


@dataclass(frozen=True)
class Step:
    """Something to run, and what it is said to print; None says nothing."""

    line: int
    language: str
    code: str
    expected: list[str] | None = None


def steps(page: str) -> list[Step]:
    """Everything on a page that runs, in order."""
    return list(_steps(page))


def _steps(page: str) -> Iterator[Step]:
    blocks = list(FENCE.finditer(page))
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        language, body = block[1], block[2]
        line = page.count("\n", 0, block.start()) + 1
        if language == "python":
            shown = after is not None and after[1] == "text"
            shown = shown and not page[block.end() : after.start()].strip() if after else False
            yield Step(line, language, body, _lines(after[2]) if after and shown else None)
        elif language == "sh":
            kept = [row for row in body.splitlines() if not row.startswith(LEFT_OUT)]
            if any(row.strip() and not row.startswith("#") for row in kept):
                yield Step(line, language, "\n".join(kept))
        elif language == "console":
            yield from _commands(line, body)


def _commands(line: int, body: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        rows = part.splitlines()
        count = next((n for n, row in enumerate(rows) if n and not row.startswith("> ")), len(rows))
        code = "\n".join([rows[0], *(row[2:] for row in rows[1:count])])
        if not code.startswith(LEFT_OUT):
            yield Step(line, "console", code, _lines("\n".join(rows[count:])))


def _lines(text: str) -> list[str]:
    return [" ".join(row.split()) for row in text.splitlines() if row.strip()]


def matches(expected: list[str], printed: list[str]) -> bool:
    """Whether lines are as shown, `...` standing for anything."""
    parts = [r"(?:[^\n]*\n)*?" if row == "..." else _pattern(row) + r"\n" for row in expected]
    return re.fullmatch("".join(parts), "".join(f"{row}\n" for row in printed)) is not None


def _pattern(row: str) -> str:
    return r"[^\n]*?".join(re.escape(piece.strip()) for piece in row.split("..."))


def run(step: Step, folder: Path, server: Server) -> None:
    """Run one step in `folder`; AssertionError when it does not do what the page shows."""
    code = _localised(step.code, server)
    python = step.language == "python"
    command = [sys.executable, "-c", code] if python else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(
        command,
        cwd=folder,
        env=_environment(server),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    expected = [_localised(row, server) for row in step.expected or []]
    fails = bool(expected) and expected[0].startswith("error:")
    # Progress comes before the refusal, and how much of it depends on the machine.
    said = done.stderr[max(done.stderr.find("error:"), 0) :] if fails else done.stdout
    where = f"line {step.line}: {step.code}\nprinted: {done.stdout}\n{done.stderr}"
    assert done.returncode == int(fails), f"exit code {done.returncode} at {where}"
    if expected:
        assert matches(expected, _lines(said)), f"other output at {where}\nshown: {expected}"


def _localised(text: str, server: Server) -> str:
    return (
        text.replace("http://127.0.0.1:8000", server.url)
        .replace("http://127.0.0.1:8501", server.rest_url)
        .replace("127.0.0.1:8500", server.grpc_url)
        .replace("~/.tapster", str(server.home))
    )


def _environment(server: Server) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(server.home),
        "KEY": server.key,
        "REST": server.rest_url,
        "GRPC": server.grpc_url,
        "TAPSTER_URL": server.url,
        "TAPSTER_KEY": server.key,
        "TAPSTER_HOME": str(server.home),
        "OMP_NUM_THREADS": "2",
    }
