"""What runtimes keep on this machine's disk of the packages that they run: a folder for each."""

import shutil
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Final

# Another worker may follow a newer plan, and be filling a folder that ours does not know of.
PATIENCE: Final = 600.0


def sweep(shelf: Path, packages: Container[str]) -> None:
    """Remove the folders of packages (digests) that are no longer needed."""
    if not shelf.is_dir():
        return
    for folder in shelf.iterdir():
        with suppress(OSError):
            if folder.name not in packages and time.time() - folder.stat().st_mtime > PATIENCE:
                shutil.rmtree(folder, ignore_errors=True)
