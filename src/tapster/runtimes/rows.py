"""Values by column name to the tensors a tabular graph takes, and dates to days.

The hot path trusts shapes and types in bulk; whatever is odd is walked cell by cell, so that an
error names the row, the column and what was expected. Missing is NaN in floats and "" in text.

What each kind of column accepts (null only where `nulls` allows it; it means missing):
number: a JSON number within the range of a 32-bit float, NaN or the string "NaN" (missing);
infinities are refused, because training data has none. boolean: true, false, 0, 1 or NaN.
date and datetime: ISO-8601 text, "" (missing) or NaN. text: a string.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Column, ColumnKind, Signature

_NUMBERS: Final = frozenset({float, int})
_TEXTS: Final = frozenset({str})
_NONE: Final = frozenset({type(None)})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_NAN: Final = float("nan")
_SHOWN: Final = 60
_PIECE: Final = 4096

Row = Mapping[str, Any]
Codec = Callable[[Any], Any]


class _OddError(Exception):
    """A batch that the fast path does not understand."""


def days(text: str, kind: ColumnKind) -> float:
    """Days since 1970-01-01 UTC of an ISO-8601 `date` or `datetime`; "" is NaN (missing).

    A datetime without an offset is UTC; a date is its midnight. Float32 keeps today's datetimes
    to about three minutes. Raises ValueError.
    """
    if text == "":
        return _NAN
    if kind == "date":
        return float(date.fromisoformat(text).toordinal() - _EPOCH.toordinal())
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) / _DAY


class Encoder:
    """The compiled way from named values to a signature's input tensors. Safe to share."""

    def __init__(self, signature: Signature) -> None:
        self._columns = {column.name: column for column in signature.columns}
        self._count = len(self._columns)
        self._groups = tuple(
            _Group(spec.name, [c for c in signature.columns if c.tensor == spec.name])
            for spec in signature.inputs
            if any(column.tensor == spec.name for column in signature.columns)
        )

    def rows(self, rows: Sequence[Row], *, nulls: bool = True, first: int = 0) -> dict[str, Array]:
        """Tensors [len(rows), columns] by input name from rows as {column: value}.

        Raises TapsterError(invalid) naming the row (counted from `first`), the column and what was
        expected.
        """
        count = self._count
        if rows and count:
            try:
                for row in rows:
                    if len(row) != count:
                        raise _OddError
                return {group.tensor: group.fast(rows, nulls) for group in self._groups}
            except (_OddError, KeyError, TypeError, ValueError, OverflowError):
                pass
        return self._carefully(rows, nulls, first)

    def columns(self, columns: Mapping[str, Any], *, nulls: bool = False) -> dict[str, Array]:
        """Tensors by input name from {column: values}: lists, or arrays [n] or [n, 1].

        All columns must have one length. Raises TapsterError(invalid) as `rows` does.
        """
        flat = {name: _flat(name, values) for name, values in columns.items()}
        self._check_names(flat, "the request")
        lengths = {name: len(values) for name, values in flat.items()}
        if len(set(lengths.values())) > 1:
            first, *rest = lengths.items()
            name, length = next(item for item in rest if item[1] != first[1])
            raise TapsterError(
                "invalid",
                f"column {_show(name)} has {length} values, column {_show(first[0])} {first[1]}",
                hint="give every column the same number of values",
                field=name[:100],
            )
        count = max(lengths.values(), default=0)
        parts = [self._table(flat, at, nulls) for at in range(0, count or 1, _PIECE)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _table(self, columns: dict[str, Any], first: int, nulls: bool) -> dict[str, Array]:
        """Some of the rows of columns: as objects, all of them would take too much memory."""
        lists = [_listed(values[first : first + _PIECE]) for values in columns.values()]
        names = list(columns)
        rows = [dict(zip(names, cells, strict=True)) for cells in zip(*lists, strict=True)]
        return self.rows(rows, nulls=nulls, first=first)

    def _carefully(self, rows: Sequence[Row], nulls: bool, first: int = 0) -> dict[str, Array]:
        if not self._count:
            raise TapsterError(
                "invalid",
                "this model has no named columns; it takes tensors",
                hint="ask for the model's metadata and send its inputs as tensors",
            )
        if not isinstance(rows, Sequence) or isinstance(rows, str | bytes) or not rows:
            raise TapsterError(
                "invalid", "there are no rows", hint="send at least one row", field="rows"
            )
        for index, row in enumerate(rows, first):
            if not isinstance(row, Mapping):
                raise TapsterError(
                    "invalid",
                    f"row {index} is {_described(row)}, not an object of column: value",
                    field=f"rows[{index}]",
                )
            self._check_names(row, f"row {index}")
        return {group.tensor: group.careful(rows, nulls, first) for group in self._groups}

    def _check_names(self, given: Mapping[str, Any], where: str) -> None:
        missing = [name for name in self._columns if name not in given]
        extra = [name for name in given if name not in self._columns]
        if not missing and not extra:
            return
        parts = []
        if missing:
            parts.append(f"lacks {_names(missing)}")
        if extra:
            parts.append(f"has {_names(extra)} that the model does not know")
        raise TapsterError(
            "invalid",
            f"{where} {' and '.join(parts)}",
            hint=_suggestion(missing, extra),
            field=str((missing or extra)[0])[:100],
        )


class _Group:
    """The columns of one tensor, in order of position."""

    def __init__(self, tensor: str, columns: list[Column]) -> None:
        self.tensor = tensor
        self._columns = sorted(columns, key=lambda column: column.position)
        names = [column.name for column in self._columns]
        self._text = self._columns[0].kind == "text"
        self._pick: Callable[[Row], tuple[Any, ...]] = (
            itemgetter(*names) if len(names) > 1 else _single(names[0])
        )
        self._special: list[tuple[int, Codec]] = [
            (index, _CODECS[column.kind])
            for index, column in enumerate(self._columns)
            if column.kind not in {"number", "text"}
        ]

    def fast(self, rows: Sequence[Row], nulls: bool) -> Array:
        """The tensor, or _OddError (or KeyError ...) when any cell needs a closer look."""
        table: list[Any] = [self._pick(row) for row in rows]
        if self._special:
            table = [self._translated(cells, nulls) for cells in table]
        kinds: set[type] = set()
        for cells in table:
            kinds.update(map(type, cells))
        kinds -= _TEXTS if self._text else _NUMBERS
        if kinds and not (nulls and kinds == _NONE):
            raise _OddError
        if self._text:
            if kinds:
                table = [["" if cell is None else cell for cell in cells] for cells in table]
            return np.array(table, dtype=np.object_)
        return _finite(table)

    def careful(self, rows: Sequence[Row], nulls: bool, first: int = 0) -> Array:
        """The tensor, cell by cell. Raises TapsterError(invalid) for the first bad cell."""
        table = [
            [_cell(index, column, row[column.name], nulls) for column in self._columns]
            for index, row in enumerate(rows, first)
        ]
        return np.array(table, dtype=np.object_ if self._text else np.float32)

    def _translated(self, cells: tuple[Any, ...], nulls: bool) -> list[Any]:
        values = list(cells)
        for index, codec in self._special:
            value = values[index]
            if value is not None or not nulls:
                values[index] = codec(value)
        return values


def encode_rows(signature: Signature, rows: Sequence[Row]) -> dict[str, Array]:
    """`Encoder(signature).rows(rows)`, for callers that do it once."""
    return Encoder(signature).rows(rows)


def encode_columns(signature: Signature, columns: Mapping[str, Any]) -> dict[str, Array]:
    """`Encoder(signature).columns(columns)`, for callers that do it once."""
    return Encoder(signature).columns(columns)


def _finite(table: list[Any]) -> Array:
    with np.errstate(over="ignore"):
        array = np.array(table, dtype=np.float32)
    if np.isinf(array).any():
        raise _OddError
    return array


def _single(name: str) -> Callable[[Row], tuple[Any, ...]]:
    return lambda row: (row[name],)


def _number(value: Any) -> float:
    if isinstance(value, str) and value == "NaN":
        return _NAN
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise ValueError("a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    with np.errstate(over="ignore"):
        if math.isinf(np.float32(number)):
            raise ValueError("a finite number that fits in a 32-bit float")
    return number


def _boolean(value: Any) -> float:
    if isinstance(value, bool | np.bool_):
        return float(value)
    if isinstance(value, int | float | np.integer | np.floating) and value in (0, 1):
        return float(value)
    if isinstance(value, float | np.floating) and math.isnan(value):
        return _NAN
    raise ValueError("true or false")


def _moment(kind: ColumnKind, expected: str) -> Codec:
    def decode(value: Any) -> float:
        if isinstance(value, float) and math.isnan(value):
            return _NAN
        if not isinstance(value, str):
            raise ValueError(expected)
        try:
            return days(value, kind)
        except (ValueError, OverflowError):
            raise ValueError(expected) from None

    return decode


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")
    return value


_CODECS: Final[dict[ColumnKind, Codec]] = {
    "number": _number,
    "boolean": _boolean,
    "date": _moment("date", 'a date such as "2026-03-31"'),
    "datetime": _moment("datetime", 'a date and time such as "2026-03-31T17:05:00Z"'),
    "text": _string,
}


def _cell(index: int, column: Column, value: Any, nulls: bool) -> Any:
    if value is None and nulls:
        return "" if column.kind == "text" else _NAN
    try:
        return _CODECS[column.kind](value)
    except ValueError as error:
        raise TapsterError(
            "invalid",
            f"row {index}, column {_show(column.name)}: expected {error}, got {_described(value)}",
            hint="a missing value is null" if nulls else _MISSING_HINT[column.kind in _WRITTEN],
            field=f"rows[{index}].{column.name[:100]}",
        ) from None


_WRITTEN: Final = frozenset({"text", "date", "datetime"})
_MISSING_HINT: Final = ("a missing value is NaN here, not null", 'a missing value is "" here')


def _flat(name: str, values: Any) -> Any:
    """A column as a list or an array [n]; [[1], [2]] and arrays [n, 1] count as [1, 2]."""
    if isinstance(values, np.ndarray):
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim == 1:
            return values
        raise _misshapen(name, f"an array of shape {list(values.shape)}")
    if not isinstance(values, list | tuple):
        raise _misshapen(name, _described(values))
    if values and isinstance(values[0], list):
        if not all(isinstance(cell, list) and len(cell) == 1 for cell in values):
            raise _misshapen(name, "nested")
        return [cell[0] for cell in values]
    return values


def _listed(values: Any) -> list[Any]:
    listed: list[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return listed


def _misshapen(name: str, found: str) -> TapsterError:
    return TapsterError(
        "invalid",
        f"column {_show(name)} is {found}; expected one value a row, shape [n] or [n, 1]",
        field=name[:100],
    )


def _suggestion(missing: Sequence[str], extra: Sequence[str]) -> str:
    for name in extra[:5]:
        alike = [each for each in missing[:1000] if _mistyped(str(name), each)]
        if close := difflib.get_close_matches(str(name)[:256], alike, n=1):
            return f"did you mean {_show(close[0])} instead of {_show(name)}?"
    return "send exactly the columns the model was trained on; its metadata lists them"


def _mistyped(given: str, name: str) -> bool:
    """Whether a slip could have made `given` of a column's name; `target` is none of `age`."""
    return abs(len(given) - len(name)) < 3 or given in name or name in given


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(_show(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"column{'s' if len(names) > 1 else ''} {shown}{more}"


def _show(name: object) -> str:
    text = str(name)
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def _described(value: Any) -> str:
    """A value in the words of JSON, shortened."""
    if value is None or isinstance(value, bool | np.bool_):
        return {None: "null", True: "true", False: "false"}[None if value is None else bool(value)]
    if isinstance(value, str):
        return f"the string {_show(value)}"
    if isinstance(value, list | tuple | np.ndarray):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int) and abs(value) > 10**20:
        return "a very large whole number"
    return _show(value)[1:-1]
