"""A model on the caller's side: a file as it is, or a folder packed into one."""

from pathlib import Path
from typing import IO, Final

from tapster.client.uploads import Outgoing, collect
from tapster.contract.errors import TapsterError

_DEPTH: Final = 2


def model_files(source: str | Path) -> list[Outgoing]:
    """What to upload for a model: one file; of a folder, its plain files as one tar.

    Hidden files and `__pycache__` stay behind. Raises TapsterError(not_found, invalid).
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        return collect(path)
    files = sorted(item for item in path.rglob("*") if item.is_file() and _meant(item, path))
    if not files:
        raise TapsterError("invalid", f"the folder {path.name!r} holds no file")
    for item in files:
        if len(item.relative_to(path).parts) > _DEPTH:
            raise TapsterError(
                "invalid",
                f"{str(item.relative_to(path))!r} lies too deep: a model may have folders, but not"
                " folders in folders",
            )
    packed = _packed(path, files)
    return [Outgoing("model.tar", packed.seek(0, 2), lambda: _rewound(packed))]


def _meant(item: Path, root: Path) -> bool:
    parts = item.relative_to(root).parts
    return not any(part.startswith(".") or part == "__pycache__" for part in parts)


def _packed(root: Path, files: list[Path]) -> IO[bytes]:
    import tarfile
    import tempfile

    made = tempfile.TemporaryFile()  # noqa: SIM115 - closed by whoever sends it
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for item in files:
            name = item.relative_to(root).as_posix()
            try:
                with item.open("rb") as content:
                    info = tarfile.TarInfo(name)
                    info.size, info.mode = item.stat().st_size, 0o644
                    archive.addfile(info, content)
            except (OSError, ValueError) as error:
                made.close()
                raise TapsterError("invalid", f"{name!r} cannot be packed: {error}") from None
    return made


def _rewound(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    return file
