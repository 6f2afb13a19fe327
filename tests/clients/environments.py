"""Virtual environments of the clients, made when a test needs one and kept by what is in them.

A list in `requirements/` pins all that a client imports, so nothing is resolved and nothing that
it only might need is fetched. The environments lie under `.venvs`, which `make clean` removes.
"""

import hashlib
import subprocess
import sys
import venv
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENVS = HERE.parents[1] / ".venvs"
INSTALL_SECONDS = 600


def names() -> list[str]:
    """The environments that there can be."""
    return sorted(path.stem for path in (HERE / "requirements").glob("*.txt"))


def start(wanted: list[str]) -> dict[str, Future[Path]]:
    """Make environments in threads of their own; each gives the interpreter."""
    pool = ThreadPoolExecutor(max(len(wanted), 1), "installing clients")
    found = {name: pool.submit(_make, name) for name in wanted}
    pool.shutdown(wait=False)
    return found


def _make(name: str) -> Path:
    """The interpreter of an environment, made unless it is whole already."""
    listed = HERE / "requirements" / f"{name}.txt"
    content = f"{sys.version}\n{listed.read_text()}".encode()
    home = VENVS / f"client-{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    interpreter, whole = home / "bin" / "python", home / "whole"
    if whole.exists():
        return interpreter
    venv.create(home, clear=True, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet"]
    options = ["--no-deps", "--no-compile", "--only-binary", ":all:", "--requirement", str(listed)]
    done = subprocess.run(
        [*pip, *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    assert done.returncode == 0, f"{name} cannot be installed: {done.stderr[-3000:]}"
    whole.touch()
    return interpreter
