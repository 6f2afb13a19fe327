"""Sources on the caller's side: a file, a folder of files, or a frame, sent as an upload."""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import unquote

from tapster.client.transport import Transport, spell
from tapster.contract.errors import TapsterError

CHUNK: Final = 1 << 20
SUFFIXES: Final = (
    ".csv", ".tsv", ".txt", ".parquet", ".pq", ".jsonl", ".ndjson", ".json",
    ".arrow", ".ipc", ".feather",
)  # fmt: skip

# Called with (bytes sent so far, bytes in all).
SendProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outgoing:
    """One file to send."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def is_url(source: Any) -> bool:
    """Whether the server is to fetch the source itself."""
    return isinstance(source, str) and "://" in source


def absolute(url: str) -> str:
    """The URL; a relative SQLite path, which is relative to the caller, made absolute."""
    path = url.removeprefix("sqlite:///")
    if path == url or path.startswith("/"):
        return url
    file, question, options = path.partition("?")
    return f"sqlite:///{Path(unquote(file)).expanduser().absolute()}{question}{options}"


def collect(source: Any) -> list[Outgoing]:
    """The files that a path, a folder or a frame consists of.

    Raises TapsterError(not_found) for a path that does not exist, (invalid) for a folder without
    a readable file or a thing that is neither path nor frame.
    """
    if isinstance(source, str | Path):
        return _from_path(Path(source).expanduser())
    return [_from_frame(source)]


def send(transport: Transport, files: list[Outgoing], on_progress: SendProgress | None) -> str:
    """Stream the files to one new upload; its id."""
    upload = transport.call(dict, "POST", "/uploads")["id"]
    total, sent = sum(item.size for item in files), 0

    def chunks(item: Outgoing) -> Iterator[bytes]:
        nonlocal sent
        with item.open() as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
                sent += len(chunk)
                if on_progress is not None:
                    on_progress(sent, total)

    for item in files:
        path = f"/uploads/{upload}/files/{spell(item.name)}"
        transport.call(dict, "PUT", path, content=chunks(item), timeout=300.0)
    return str(upload)


def _from_path(path: Path) -> list[Outgoing]:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise TapsterError(
                "invalid",
                f"the folder {path.name!r} holds no file that can be imported",
                hint="supported: " + " ".join(SUFFIXES),
            )
        return _distinct([_outgoing(item) for item in found])
    if not path.exists():
        raise TapsterError("not_found", f"there is no file {str(path)!r}", hint="check the path")
    return [_outgoing(path)]


def _distinct(files: list[Outgoing]) -> list[Outgoing]:
    if len({item.name for item in files}) == len(files):
        return files
    return [replace(item, name=f"{at}-{item.name}") for at, item in enumerate(files)]


def _outgoing(path: Path) -> Outgoing:
    try:
        with path.open("rb"):
            return Outgoing(_safe(path.name), path.stat().st_size, lambda: path.open("rb"))
    except OSError as error:
        raise TapsterError(
            "invalid", f"{str(path)!r} cannot be read: {error.strerror}", hint="check its rights"
        ) from None


def _safe(name: str) -> str:
    """`name` in the characters that an upload may have; only the suffix means something."""
    stem = re.sub(r"[^\w .()+@=-]", "_", name)[-200:]
    return stem if re.match(r"[^\W_]", stem) else f"f{stem}"[:200]


def _from_frame(frame: Any) -> Outgoing:
    kind = type(frame).__module__.partition(".")[0]
    if kind not in {"polars", "pandas"}:
        raise TapsterError(
            "invalid",
            f"a {type(frame).__name__} is no data source",
            hint="give a path, a URL, or a pandas or polars frame",
        )
    data = _parquet(frame, kind)
    return Outgoing("frame.parquet", len(data), lambda: io.BytesIO(data))


def _parquet(frame: Any, kind: str) -> bytes:
    import polars

    if kind == "pandas":
        try:
            frame = polars.from_pandas(frame)
        except ImportError:
            raise TapsterError(
                "unavailable", "this pandas frame needs pyarrow", hint="pip install pyarrow"
            ) from None
        except Exception as error:  # pyarrow's errors have no common type without importing it
            raise TapsterError("invalid", f"the pandas frame cannot be sent: {error}") from None
    frame = frame.to_frame() if isinstance(frame, polars.Series) else frame
    frame = frame.collect() if isinstance(frame, polars.LazyFrame) else frame
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
