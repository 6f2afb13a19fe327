"""Commands out of Debian packages, unpacked beside the clients: nothing is installed or started."""

import shutil
import subprocess
from pathlib import Path

from tests.clients.environments import VENVS

SECONDS = 300


def command(name: str, package: str) -> str:
    """A command's path: the one that is installed, else the package's."""
    if found := shutil.which(name):
        return found
    folder = VENVS / f"debian-{package}"
    path = folder / "usr" / "bin" / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _unpack(package, folder)
    return str(path)


def _unpack(package: str, folder: Path) -> None:
    """Download and unpack. Package lists that are missing or old are renewed, which needs root."""
    fetch = ["apt-get", "download", "--quiet", package]
    if _run(fetch, folder).returncode:
        _run(["apt-get", "update", "--quiet"], folder)
        done = _run(fetch, folder)
        assert done.returncode == 0, f"{package} cannot be had: {done.stderr}"
    (archive,) = folder.glob(f"{package}_*.deb")
    done = _run(["dpkg-deb", "--extract", archive.name, "."], folder)
    assert done.returncode == 0, done.stderr
    archive.unlink()


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=folder, check=False, capture_output=True, text=True, timeout=SECONDS
    )
