"""A 2 GB CSV imports and profiles in under 1 GB of memory; TAPSTER_SOAK scales both."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

# What a table of any length needs: the interpreter, polars and its threads' buffers, the sample.
FLOOR = 500e6
CODE = """
import json, sys
from pathlib import Path
from tapster.datasets import importing
from tapster.jobs.context import JobContext
work = Path(sys.argv[1])
result = importing.run({"upload": "x"}, JobContext(work, {"upload": work / "upload"}))
# Not ru_maxrss, which begins with what the process had that started this one.
status = Path("/proc/self/status").read_text()
peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
print(json.dumps({"rows": result["rows"], "peak": peak, "columns": result["columns"]}))
"""


def _write(path: Path, size: int) -> int:
    """A table of every type with hardly a repeated value; returns its rows."""
    rng = random.Random(3)
    rows = written = 0
    with path.open("w") as file:
        file.write("id,when,city,amount,score,flag,note,late\n")
        while written < size:
            lines = []
            for _ in range(5_000):
                rows += 1
                lines.append(
                    f"{rows},2024-0{rows % 9 + 1}-1{rows % 10},city {rng.randint(0, 500)},"
                    f"{rng.gauss(100, 20)!r},{rng.random()!r},{'true' if rows % 3 else 'false'},"
                    f'"note, {rng.getrandbits(64):x} ""quoted""",'
                    f"{rng.randint(0, 10**9) if rows % 7 else ''}"
                )
            written += file.write("\n".join(lines) + "\n")
    return rows


@pytest.mark.soak
def test_a_large_csv_imports_and_profiles_in_bounded_memory(tmp_path: Path) -> None:
    scale = float(os.environ.get("TAPSTER_SOAK", "1"))
    (tmp_path / "upload").mkdir()
    rows = _write(tmp_path / "upload" / "large.csv", int(2e9 * scale))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["rows"] == rows
    assert [column["type"] for column in seen["columns"]] == [
        "integer", "date", "text", "number", "number", "boolean", "text", "integer",
    ]  # fmt: skip
    limit = FLOOR + (1e9 - FLOOR) * scale
    assert seen["peak"] < limit, f"{seen['peak'] / 1e6:.0f} MB"
    print(f"{rows:,} rows, {2000 * scale:.0f} MB: peak {seen['peak'] / 1e6:.0f} MB")
