"""Models that may not run in a worker's own process: loaded into processes of their own.

The mechanism is `runtimes.isolated`; this is what a data-plane worker asks of it.
"""

from pathlib import Path

from tapster.contract.manifest import Manifest
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.model import Isolated, close_all

__all__ = ["close_all", "load"]


def load(folder: Path, digest: str, manifest: Manifest, memory: int = 0) -> Isolated:
    """The package in `folder` in processes of its own, within the limits of this installation.

    `memory`: bytes that each may use, 0 for the setting. Raises TapsterError(unprocessable).
    """
    return Isolated.of_package(folder, digest, manifest, Limits.of_settings(memory))
