"""The process of one job: `python -m tapster.jobs.child FOLDER PARENT`.

FOLDER holds `task.json` ({"run", "task", "inputs", "deadline"}); the process appends its progress
to `report` and leaves `result.json` ({"result": ...} or {"error": ...}) and `out/`.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tapster.contract.errors import TapsterError
from tapster.core.blobs import storage_error, write_atomically
from tapster.core.processes import die_with_parent
from tapster.jobs.context import JobContext


def main(folder: Path, parent: int) -> int:
    """Run the job in `folder`; 0 when it left a result or an error."""
    die_with_parent(parent)
    order = json.loads((folder / "task.json").read_text())
    report = os.open(folder / "report", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    context = JobContext(
        work=folder,
        inputs={label: Path(path) for label, path in order["inputs"].items()},
        deadline=order["deadline"],
        report=report,
    )
    write_atomically(folder / "result.json", json.dumps(_answer(order, context)).encode())
    return 0


def _answer(order: dict[str, Any], context: JobContext) -> dict[str, Any]:
    try:
        module, _, function = order["run"].partition(":")
        run = getattr(importlib.import_module(module), function)
        return {"result": run(order["task"], context)}
    except TapsterError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return {"error": error.as_dict()}
    except MemoryError:
        traceback.print_exc()
        return {"error": _out_of_memory().as_dict()}
    except OSError as error:
        traceback.print_exc()
        return {"error": storage_error(error).as_dict()}
    except Exception as error:
        traceback.print_exc()
        return {"error": _crash(error).as_dict()}


def _out_of_memory() -> TapsterError:
    return TapsterError(
        "unprocessable", "the job ran out of memory", hint="use less data or a larger machine"
    )


def _crash(error: Exception) -> TapsterError:
    return TapsterError(
        "internal",
        f"the job stopped with an unexpected {type(error).__name__}",
        hint="see its log: tapster jobs logs ID",
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
