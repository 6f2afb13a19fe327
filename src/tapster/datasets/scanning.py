"""One pass over the bytes of a text file: digest, encoding, shape. Constant memory."""

import codecs
import csv
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.datasets.columns import check_count

BLOCK: Final = 4 << 20
MAX_HEADER: Final = 8 << 20
_SIGNATURES: Final = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "gzip-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"BZh": "bzip2-compressed",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


@dataclass
class Shape:
    """What a pass over a delimited file found. `records` counts the lines that are not blank."""

    sha256: str
    bytes: int
    header: list[str]
    separator: str
    records: int
    blanks: int
    even: bool


def signature(start: bytes) -> str:
    """What kind of file the first bytes announce, in words; "" for text."""
    return next((what for magic, what in _SIGNATURES.items() if start.startswith(magic)), "")


def refuse_binary(start: bytes, file: str) -> None:
    """Raise TapsterError(invalid) if a file that should be text is not."""
    what = signature(start)
    if not what and b"\0" in start:
        what = "binary"
    if what:
        raise TapsterError(
            "invalid",
            f"{file} is {what}, not text",
            hint="give CSV, TSV or JSON Lines in UTF-8, or name the file after its format "
            "(.parquet, .arrow, .jsonl, .csv, .tsv)",
            field=file,
        )


def read_text(
    path: Path, file: str, advance: Callable[[int], None], digest: "hashlib._Hash"
) -> Iterator[bytes]:
    """The blocks of a text file, each hashed and known to be UTF-8 without NUL bytes.

    Raises TapsterError(invalid) naming line and byte otherwise.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = lines = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            if not offset:
                refuse_binary(block[: 1 << 16], file)
            digest.update(block)
            _check_utf8(decoder, block, file, offset, lines)
            offset += len(block)
            lines += block.count(b"\n")
            advance(len(block))
            yield block
    _check_utf8(decoder, b"", file, offset, lines)


def _check_utf8(
    decoder: codecs.IncrementalDecoder, block: bytes, file: str, offset: int, lines: int
) -> None:
    pending = decoder.getstate()[0]
    nul = block.find(b"\0")
    if nul >= 0:
        line = lines + block.count(b"\n", 0, nul) + 1
        raise TapsterError(
            "invalid",
            f"{file} is not text: line {line:,} (byte {offset + nul:,}) holds a NUL byte",
            hint="export it again as UTF-8 text",
            field=file,
        )
    if block.isascii() and block and not pending:
        return
    try:
        decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        at = error.start - len(pending)
        line = lines + block.count(b"\n", 0, max(0, at)) + 1
        value = (pending + block)[error.start]
        raise TapsterError(
            "invalid",
            f"{file} is not UTF-8: byte 0x{value:02X} in line {line:,} (byte {offset + at:,})",
            hint="save it as UTF-8; for Western European text: iconv -f latin1 -t utf-8",
            field=file,
        ) from None


def scan_delimited(path: Path, file: str, separator: str, advance: Callable[[int], None]) -> Shape:
    """Read a CSV or TSV file through once. Raises TapsterError(invalid or too_large)."""
    header, separator = _header(path, file, separator)
    digest = hashlib.sha256()
    counter = _Counter(separator.encode())
    for block in read_text(path, file, advance, digest):
        counter.feed(block)
    counter.close()
    if counter.quoted:
        raise TapsterError(
            "invalid",
            f"a quotation mark opened in line {counter.opened:,} of {file} is never closed",
            hint='close it; a quotation mark inside a quoted value is written twice: ""',
            field=file,
        )
    records = counter.lines - counter.blanks
    even = len(header) == 1 or counter.separators == records * (len(header) - 1)
    return Shape(
        digest.hexdigest(),
        path.stat().st_size,
        header,
        separator,
        records - 1,
        counter.blanks,
        even,
    )


def _header(path: Path, file: str, separator: str) -> tuple[list[str], str]:
    with path.open("rb") as stream:
        start = stream.read(MAX_HEADER)
    if not start.strip():
        raise TapsterError(
            "invalid",
            f"{file} is empty",
            hint="give a file with a header line and at least one row",
            field=file,
        )
    refuse_binary(start[: 1 << 16], file)
    if b"\n" not in start and (len(start) == MAX_HEADER or b"\r" in start):
        raise TapsterError(
            "invalid",
            f"{file} has no line end in its first {len(start):,} bytes",
            hint="lines must end in LF or CR LF",
            field=file,
        )
    text = start.decode("utf-8-sig", errors="replace")
    separator = separator or _sniff(text)
    check_count(text.partition("\n")[0].count(separator) + 1, file)
    header = _first_record(text, file, separator)
    check_count(len(header), file)
    return header, separator


def _first_record(text: str, file: str, separator: str) -> list[str]:
    try:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise TapsterError(
            "invalid",
            f"the header line of {file} cannot be read: {error}",
            hint="the first line must hold the column names",
            field=file,
        ) from None
    if not header:
        raise TapsterError(
            "invalid",
            f"the first line of {file} is blank",
            hint="the first line must hold the column names",
            field=file,
        )
    return header


def _sniff(text: str) -> str:
    if len(next(filter(None, _first_records(text, ",")), [])) > 1:
        return ","
    for separator in ("\t", ";", "|"):
        counts = [len(record) for record in _first_records(text, separator) if record]
        if len(set(counts)) == 1 and counts[0] > 1 and len(counts) > 1:
            return separator
    return ","


def _first_records(text: str, separator: str) -> list[list[str]]:
    """At most 20, of which the last is whole."""
    start = text[: 1 << 16]
    reader = csv.reader(io.StringIO(start, newline=""), delimiter=separator)
    try:
        records = list(itertools.islice(reader, 20))
    except csv.Error:
        return []
    cut = len(start) < len(text) and len(records) < 20
    return records[:-1] if cut else records


class _Counter:
    """Counts separators and line ends outside quotes. Quotes toggle, as RFC 4180 has it."""

    def __init__(self, separator: bytes) -> None:
        self.lines = self.blanks = self.separators = self.opened = 0
        self.quoted = False
        self._separator = separator
        self._last = b"\n"
        self._physical = 0

    def feed(self, block: bytes) -> None:
        """Take the next block."""
        pieces = block.split(b'"')
        outside = b'"'.join(pieces[self.quoted :: 2])
        if self.quoted and len(pieces) > 1:
            outside = b'"' + outside
        if len(pieces) % 2 == 0:
            self.quoted = not self.quoted
            if self.quoted:
                self.opened = self._physical + block.count(b"\n", 0, block.rfind(b'"')) + 1
                outside += b'"'
        self._physical += block.count(b"\n")
        outside = outside.replace(b"\r", b"")
        self.lines += outside.count(b"\n")
        self.separators += outside.count(self._separator)
        self._count_blanks(outside)

    def _count_blanks(self, outside: bytes) -> None:
        joined = self._last + outside
        at = joined.find(b"\n\n")
        while at >= 0:
            self.blanks += 1
            at = joined.find(b"\n\n", at + 1)
        self._last = joined[-1:]

    def close(self) -> None:
        """No more blocks: a last line without a line end is a line too."""
        self.lines += self._last != b"\n"


def find_stray_quote(path: Path, file: str, shape: Shape) -> None:
    """Raise TapsterError(invalid) naming the first line with a quotation mark inside a value."""
    quoted = False
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for number, line in enumerate(stream, 1):
            fields = [] if quoted else line.rstrip("\r\n").split(shape.separator)
            plain = itertools.takewhile(lambda field: not field.startswith('"'), fields)
            if any('"' in field for field in plain):
                raise TapsterError(
                    "invalid",
                    f"line {number:,} of {file} has a quotation mark inside a value",
                    hint='write it twice and put the whole value in quotation marks: "5"" pipe"',
                    field=file,
                )
            quoted ^= line.count('"') % 2 == 1


def find_ragged(path: Path, file: str, shape: Shape) -> None:
    """Raise TapsterError(invalid) naming the first line whose fields are not the header's."""
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=shape.separator)
        for record in reader:
            if record and len(record) != len(shape.header):
                raise TapsterError(
                    "invalid",
                    f"line {reader.line_num:,} of {file} has {len(record):,} "
                    f"{'field' if len(record) == 1 else 'fields'}; "
                    f"the header has {len(shape.header):,}",
                    hint="give every line as many fields as the header, and put values that "
                    f"hold {shape.separator!r} in quotation marks",
                    field=file,
                )
