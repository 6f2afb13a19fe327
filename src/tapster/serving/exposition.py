"""Samples as text: Prometheus's format 0.0.4, or OpenMetrics 1.0.0.

The two differ in the names that families have, and in the last line. Sources: the Prometheus
documentation's page on exposition formats; the OpenMetrics specification 1.0.0.
"""

from collections.abc import Iterable, Sequence
from typing import Final

PROMETHEUS: Final = b"text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
PIECE: Final = 128 * 1024
_PLACE: Final = "\0"


class Page:
    """Families of samples, one after another; `pieces` are the text, cut for sending."""

    def __init__(self, openmetrics: bool = False) -> None:
        self.openmetrics = openmetrics
        self.kind = OPENMETRICS if openmetrics else PROMETHEUS
        self._parts: list[bytes] = []
        self._size = 0
        self.pieces: list[bytes] = []

    def family(self, name: str, kind: str, text: str) -> None:
        """Begin a family: `kind` is counter, gauge, histogram or info; `name` as samples have it,
        but of histograms, without `_bucket`."""
        if self.openmetrics:
            name = name.removesuffix({"counter": "_total", "info": "_info"}.get(kind, ""))
        elif kind == "info":
            kind = "gauge"
        self._add(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")

    def samples(self, lines: Iterable[str]) -> None:
        """Lines of the family that was begun last."""
        self._add("".join([line + "\n" for line in lines]))

    def end(self) -> None:
        """The page is complete: `pieces` holds all of it."""
        if self.openmetrics:
            self._add("# EOF\n")
        self._cut()

    def _add(self, text: str) -> None:
        data = text.encode()
        self._parts.append(data)
        self._size += len(data)
        if self._size > PIECE:
            self._cut()

    def _cut(self) -> None:
        self.pieces.append(b"".join(self._parts))
        self._parts, self._size = [], 0


class Shape:
    """The lines that one place has in a family, spelled but for its labels and values."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._text = "\n".join(lines)

    def lines(self, names: str, values: Sequence[float]) -> str:
        """The lines with these labels and values, in the order in which they were declared."""
        return self._text.replace(_PLACE, names.replace("%", "%%")) % tuple(values)


def counters(name: str, label: str, values: Sequence[str], form: str = "%d") -> Shape:
    """A counter for each value of a label, or a single one without."""
    if not values:
        return Shape([f"{name}{{{_PLACE}}} {form}"])
    return Shape([f'{name}{{{_PLACE},{label}="{value}"}} {form}' for value in values])


def histogram(name: str, bounds: Sequence[float]) -> Shape:
    """A histogram: a running count for each bound and for +Inf, then the sum, then the count."""
    edges = [*(str(float(bound)) for bound in bounds), "+Inf"]
    buckets = [f'{name}_bucket{{{_PLACE},le="{edge}"}} %d' for edge in edges]
    return Shape([*buckets, f"{name}_sum{{{_PLACE}}} %r", f"{name}_count{{{_PLACE}}} %d"])


def labels(**names: str) -> str:
    """Labels as they stand between braces."""
    return ",".join(f'{name}="{_escape(text)}"' for name, text in names.items())


def wanted(accept: bytes) -> bool:
    """Whether an `Accept` header asks for OpenMetrics."""
    for choice in accept.lower().split(b","):
        kind, *parameters = [part.strip() for part in choice.split(b";")]
        if kind == b"application/openmetrics-text":
            return b"q=0" not in parameters and b"version=0.0.1" not in parameters
    return False


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
