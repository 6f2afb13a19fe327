"""Opens JSON Lines. A first pass reads every line, so no late key or type comes as a surprise."""

import codecs
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from tapster.contract.errors import TapsterError
from tapster.datasets.columns import check_count, check_names, shown
from tapster.datasets.conversion import DTYPES, blank_to_null
from tapster.datasets.scanning import read_text
from tapster.datasets.tables import Table, safe_names

_KINDS: Final[dict[type, str]] = {bool: "boolean", int: "integer", float: "number", str: "text"}
_LIMIT: Final = 1 << 63


def open_lines(
    files: list[tuple[Path, str]], progress: Callable[[int], None]
) -> tuple[Table, list[str]]:
    """JSON Lines files as one table, and their SHA-256 digests.

    Raises TapsterError(invalid) naming the line that is not an object of plain values.
    """
    seen: dict[str, set[type]] = {}
    digests, rows = [], 0
    for path, name in files:
        digest = hashlib.sha256()
        lines = _Lines(name, seen)
        for block in read_text(path, name, progress, digest):
            lines.feed(block)
        lines.close()
        rows += lines.rows
        digests.append(digest.hexdigest())
    names = check_names(list(seen), files[0][1])
    kinds = [_kind(seen[name]) for name in seen]
    frame = pl.scan_ndjson(
        [path for path, _ in files],
        schema=dict(zip(seen, (DTYPES[kind] for kind in kinds), strict=True)),
    )
    safe = safe_names(len(names))
    renamed = frame.rename(dict(zip(seen, safe, strict=True)))
    texts = [c for c, kind in zip(safe, kinds, strict=True) if kind == "text"]
    renamed = renamed.with_columns(blank_to_null(pl.col(c)).alias(c) for c in texts)
    return Table(renamed, names, "", rows, loose=dict.fromkeys(texts, False)), digests


class _Lines:
    def __init__(self, file: str, seen: dict[str, set[type]]) -> None:
        self.rows = 0
        self._file = file
        self._seen = seen
        self._line = 0
        self._rest = b""
        self._decode = msgspec.json.Decoder().decode

    def feed(self, block: bytes) -> None:
        lines = (self._rest + block).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._take(line)

    def close(self) -> None:
        if self._rest:
            self._take(self._rest)
        if not self.rows:
            raise TapsterError(
                "invalid", f"{self._file} has no rows", hint="give one JSON object a line"
            )

    def _take(self, line: bytes) -> None:
        self._line += 1
        if self._line == 1:
            if line.startswith(codecs.BOM_UTF8):
                raise self._refuse("begins with a byte order mark, which JSON forbids")
            if line.lstrip().startswith(b"["):
                raise self._refuse("begins a JSON list")
        if not line.strip():
            return
        try:
            record = self._decode(line)
        except msgspec.DecodeError as error:
            raise self._refuse(f"is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise self._refuse("is not a JSON object")
        self.rows += 1
        seen = self._seen
        for key, value in record.items():
            kinds = seen.get(key)
            if kinds is None:
                kinds = seen[key] = set()
                check_count(len(seen), self._file)
            kind = type(value)
            if kind is int and not -_LIMIT <= value < _LIMIT:
                kind = float
            if kind not in kinds and value is not None:
                self._check(key, value)
                kinds.add(kind)

    def _check(self, key: str, value: Any) -> None:
        if type(value) not in _KINDS:
            what = "an object" if isinstance(value, dict) else "a list"
            raise self._refuse(f"holds {what} under {shown(key)}, which a column cannot")

    def _refuse(self, what: str) -> TapsterError:
        return TapsterError(
            "invalid",
            f"line {self._line:,} of {self._file} {what}",
            hint="JSON Lines is one object a line, of texts, numbers, booleans and nulls",
            field=self._file,
        )


def _kind(types: set[type]) -> str:
    if types == {int, float}:
        return "number"
    return _KINDS[next(iter(types))] if len(types) == 1 else "text"
