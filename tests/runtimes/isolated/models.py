"""Folders of Python models that do what a test wants, and misbehave on request."""

import json
from pathlib import Path
from typing import Any

TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}],
}
# What the model does when a row begins with the deed's code; else it answers twice the input.
DEEDS = {
    "segfault": "ctypes.string_at(0)",
    "abort": "os.abort()",
    "exit": "os._exit(3)",
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "sleep": "time.sleep(1000)",
    "spin": "7 ** 10**9",
    "nap": "time.sleep(0.5)",
    "hoard": "keep.append(bytearray(4 << 30))",
    "bomb": "keep.extend(bytes(1 << 20) for _ in iter(int, 1))",
    "share": "keep.append(mmap.mmap(-1, 1 << 30)); keep[-1].write(bytes(1 << 30)); time.sleep(60)",
    "breed": "breed(); time.sleep(60)",
    "leak": "keep.append(np.ones(4 << 20)); time.sleep(0.05)",
    "print": "[print('line', n) for n in range(50_000)]",
    "scribble": "scribble()",
    "hang up": "os.closerange(3, 64); time.sleep(1000)",
    "huge": "x = np.zeros((1 << 14, 1 << 10), np.float32)",
    "double": "return {'y': x.astype(np.float64)}",
    "text": "return {'y': np.array([['a']])}",
    "flat": "return {'y': x.ravel()}",
    "nothing": "return {}",
    "list": "return [x]",
    "refuse": "raise ValueError('no such colour in /srv/secret/place.py')",
    "fail": "raise KeyError('a secret of the model')",
    "leave": "sys.exit(4)",
    "end slowly": "os.closerange(3, 64); time.sleep(0.5); os._exit(5)",
    "child": "subprocess.Popen(['sleep', '1000']); os.abort()",
    "pid": "return {'y': np.array([[os.getpid() % 2**20]], np.float32)}",
    "nap pid": "time.sleep(0.5); return {'y': np.array([[os.getpid() % 2**20]], np.float32)}",
}
CODES = {name: -float(number) for number, name in enumerate(DEEDS, 1)}

_SOURCE = """
import ctypes, mmap, os, signal, subprocess, sys, time
import numpy as np

keep = []

def scribble():
    for descriptor in range(3, 32):
        try:
            os.write(descriptor, b"this is no answer")
        except OSError:
            pass

def breed():
    code = "import time; keep = bytearray(100 << 20); time.sleep(60)"
    for _ in range(4):
        subprocess.Popen([sys.executable, "-c", code])

class Model:
    def load(self, folder):
{load}

    def predict(self, inputs):
        x = inputs["x"]
        code = float(x[:, 0].min()) if x.size else 0.0
{deeds}
        return {{"y": x * 2}}
"""


def wild(folder: Path, load: str = "pass", **declaration: Any) -> Path:
    """A model that does the DEEDS; `load` is the body of its load method."""
    folder.mkdir(parents=True)
    deeds = "\n".join(f"        if code == {CODES[name]}: {deed}" for name, deed in DEEDS.items())
    (folder / "model.py").write_text(_SOURCE.format(deeds=deeds, load=f"        {load}"))
    (folder / "model.json").write_text(json.dumps({**TENSORS, **declaration}))
    return folder


def echo(folder: Path, datatype: str, rank: int) -> Path:
    """A model that answers `y` as it was given `x`, of any shape of that rank."""
    folder.mkdir(parents=True)
    spec = {"datatype": datatype, "shape": [-1] * rank}
    declaration = {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}]}
    (folder / "model.json").write_text(json.dumps(declaration))
    (folder / "model.py").write_text(
        "class Model:\n"
        "    def load(self, folder): pass\n"
        "    def predict(self, inputs): return {'y': inputs['x']}\n"
    )
    return folder
