"""A fitted model to ONNX, in a process of its own with a time limit.

One known input makes the converter run for ever, so it never runs in the job's process. The
pickle that goes over was written a moment ago by that same job, into its own private folder.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

from tapster.contract.errors import TapsterError
from tapster.core.processes import die_with_parent
from tapster.training import models


def convert(model: models.Model, numeric: int, text: int, folder: Path, timeout: float) -> bytes:
    """The model over `numeric` and `text` columns as ONNX bytes; `folder` is private and new.

    Raises TapsterError(unprocessable) when the converter fails, and after `timeout` seconds.
    """
    folder.mkdir(mode=0o700)
    source, target, problem = folder / "model.pickle", folder / "model.onnx", folder / "problem"
    source.write_bytes(pickle.dumps((model, numeric, text), protocol=5))
    command = [
        sys.executable,
        "-m",
        "tapster.training.conversion",
        *map(str, (source, target, problem, os.getpid())),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise _failed(model.algorithm, f"took longer than {timeout:g} s") from None
    if done.returncode or not target.exists():
        reason = problem.read_text() if problem.exists() else f"ended with {done.returncode}"
        raise _failed(model.algorithm, reason)
    return target.read_bytes()


def _failed(algorithm: str, reason: str) -> TapsterError:
    return TapsterError(
        "unprocessable",
        f"{algorithm} could not be converted to ONNX: {reason}",
        hint="train with another algorithm, or with auto, which takes the next best",
        field="algorithm",
    )


def main(source: str, target: str, problem: str, parent: str) -> int:
    """Convert the pickled model in `source` into `target`, or say why not in `problem`."""
    die_with_parent(int(parent))
    try:
        model, numeric, text = pickle.loads(Path(source).read_bytes())  # noqa: S301 - our own
        Path(target).write_bytes(models.to_onnx(model, numeric, text))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        Path(problem).write_text(f"{type(error).__name__}: {first}"[:300])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
