"""Models that may not run in a worker's own process: loaded into processes of their own.

The mechanism is `runtimes.isolated`; this is what a data-plane worker asks of it.
"""

import os
import weakref
from pathlib import Path

from tapster.contract.manifest import Manifest
from tapster.core.vault import hold
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.model import Isolated, close_all

__all__ = ["close_all", "load"]


def load(folder: Path, digest: str, manifest: Manifest, memory: int = 0) -> Isolated:
    """The package in `folder` in processes of its own, within the limits of this installation.

    `memory`: bytes that each may use, 0 for the setting. The folder is held for as long as the
    model lives: a process that takes a dead one's place reads it again. Raises
    TapsterError(unprocessable).
    """
    held = hold(folder)
    try:
        model = Isolated.of_package(folder, digest, manifest, Limits.of_settings(memory))
    except BaseException:
        os.close(held)
        raise
    weakref.finalize(model, os.close, held)
    return model
