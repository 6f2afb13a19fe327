"""A file on the caller's side, complete or not at all."""

from collections.abc import Iterable
from pathlib import Path

from tapster.contract.errors import TapsterError


def save(path: str | Path, pieces: Iterable[bytes]) -> Path:
    """Write a file under another name first; where it lies. Raises TapsterError(invalid)."""
    final = Path(path).expanduser()
    if not final.name:
        raise TapsterError("invalid", f"{str(final)!r} is a folder", hint="name a file in it")
    part = final.with_name(final.name + ".part")
    try:
        with part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        return part.replace(final)
    except OSError as error:
        message = f"{str(final)!r} cannot be written: {error.strerror}"
        raise TapsterError("invalid", message) from None
    finally:
        part.unlink(missing_ok=True)
