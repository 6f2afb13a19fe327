"""The yardstick for heavy models: ONNX Runtime alone, called in a loop with nothing around it.

`python benchmarks/inprocess.py MODEL.onnx ROWS.npy SECONDS CPU` prints one JSON object as `load.py`
does: calls a second on one core with one thread, each with the rows of the file.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(model: Path, rows_file: Path, seconds: float, cpu: int) -> None:
    """Warm up for a third of the time, then count."""
    import numpy as np
    import onnxruntime as ort

    os.sched_setaffinity(0, {cpu})
    rows = np.load(rows_file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options)
    source = session.get_inputs()[0].name
    call(session, {source: rows}, seconds / 3)
    began, cpu_began = time.perf_counter(), time.process_time()
    times = sorted(call(session, {source: rows}, seconds))
    took, used = time.perf_counter() - began, time.process_time() - cpu_began
    result = {
        "requests": len(times),
        "rate": len(times) / took,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[int(0.99 * len(times))] * 1e3,
        "cpu_us": used / len(times) * 1e6,
        "errors": 0,
        "generator_busy": 0.0,
    }
    print(json.dumps(result))


def call(session: Any, inputs: dict[str, Any], seconds: float) -> list[float]:
    """Run the model for so long; the seconds that each call took."""
    times: list[float] = []
    now = time.perf_counter()
    until = now + seconds
    while now < until:
        session.run(None, inputs)
        after = time.perf_counter()
        times.append(after - now)
        now = after
    return times


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
