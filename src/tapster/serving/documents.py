"""A request and its answer as a JSON document, with what the rules take out of it taken out.

Values are given by column where the model has columns, else by tensor. What does not fit within the
size that a document may have is left out field by field, each with its datatype and shape; so are
tensors of bytes, which may spell text.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Signature, TensorSpec
from tapster.contract.plan import PayloadRules
from tapster.core.envelope import DataKey
from tapster.core.redaction import Redactor
from tapster.serving.work import Inputs

MASKED: Final = "[masked]"
# From here on a number may be a card's or a telephone's.
LONG_NUMBER: Final = 1e11
_BYTES: Final = frozenset({"UINT8", "INT8"})
_PLACE: Final = re.compile(r"(?:rows|instances)\[\d+\](?:\.(.*))?", re.DOTALL)
_encode: Final = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Payload:
    """What is kept of a request: references, until a thread makes a document of them.

    `outputs` holds an array for each output of the signature, those of the batch that it ran in,
    from row `first` on; all of it when `alone`. `seconds` from its arrival to its answer.
    """

    identity: str
    time: float
    seconds: float
    tenant: str
    version: str
    wire: str
    rows: int
    signature: Signature
    packed: tuple[str, int] | None
    inputs: Inputs
    outputs: Sequence[Array] = ()
    first: int = 0
    alone: bool = True
    error: TapsterError | None = None
    size: int = field(default=0)


class Documents:
    """Makes documents by the rules of one endpoint."""

    def __init__(self, endpoint: str, rules: PayloadRules, key: DataKey | None) -> None:
        self._endpoint = endpoint
        self._rules = rules
        self._redactor = Redactor(rules.patterns, rules.expressions)
        salt = bytes.fromhex(rules.salt)
        # With a data key, hashes are worth nothing to who has the database only.
        self._key = hmac.digest(key.secret, salt, "sha256") if key is not None else salt

    def spell(self, payload: Payload) -> bytes:
        """The document, as JSON."""
        error = payload.error
        found: dict[str, Any] = {
            "id": self._redactor.text(payload.identity),
            "time": round(payload.time, 6),
            "endpoint": self._endpoint,
            "version": payload.version,
            "tenant": payload.tenant,
            "wire": payload.wire,
            "status": "ok" if error is None else error.code,
            "rows": payload.rows,
            "seconds": round(payload.seconds, 6),
        }
        if error is not None and (place := self._place(payload.signature, error.field)):
            found["field"] = place
        room = _Room(self._rules.size)
        inputs = self._inputs(payload)
        if inputs:
            found["inputs"] = self._columns(payload.signature, inputs, room)
        if payload.outputs:
            found["outputs"] = self._tensors(payload.signature.outputs, _outputs(payload), room)
        return _encode(found)

    def _inputs(self, payload: Payload) -> dict[str, Array]:
        if not isinstance(payload.inputs, bytes):
            return payload.inputs
        if not payload.inputs or payload.packed is None:
            return {}
        name, width = payload.packed
        return {name: np.frombuffer(payload.inputs, np.float32).reshape(-1, width)}

    def _columns(
        self, signature: Signature, arrays: Mapping[str, Array], room: "_Room"
    ) -> dict[str, Any]:
        """Inputs by column; tensors that have none by their own name."""
        found: dict[str, Any] = {}
        named = {column.tensor for column in signature.columns}
        for column in signature.columns:
            array = arrays.get(column.tensor)
            rules = {column.name, column.tensor}
            if array is None or array.ndim != 2 or not rules.isdisjoint(self._rules.drop):
                continue
            values = array[:, column.position]
            found[column.name] = room.fit(self._cells(rules, values, room), values)
        rest = [spec for spec in signature.inputs if spec.name not in named]
        return found | self._tensors(rest, arrays, room)

    def _tensors(
        self, specs: Sequence[TensorSpec], arrays: Mapping[str, Array], room: "_Room"
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for spec in specs:
            array = arrays.get(spec.name)
            if array is None or spec.name in self._rules.drop:
                continue
            about = {"datatype": spec.datatype, "shape": list(array.shape)}
            cells = None
            if spec.datatype not in _BYTES:
                cells = room.fit(self._cells({spec.name}, array.ravel(), room), None)
            found[spec.name] = about | ({"omitted": True} if cells is None else {"data": cells})
        return found

    def _cells(self, names: set[str], values: Array, room: "_Room") -> list[Any] | None:
        """Values as the rules let them be seen; None if they would not fit."""
        rules = self._rules
        if not room.takes(values):
            return None
        if not names.isdisjoint(rules.mask):
            return [MASKED] * len(values)
        if not names.isdisjoint(rules.hash):
            return [self._hash(value) for value in values.tolist()]
        if values.dtype == object:
            return [self._redactor.text(_text(value)) for value in values.tolist()]
        listed: list[Any] = values.tolist()
        if values.dtype.kind in "fiu" and bool((np.abs(values) >= LONG_NUMBER).any()):
            return [self._number(value) for value in listed]
        return listed

    def _hash(self, value: Any) -> str:
        spelled = _text(value) if isinstance(value, str | bytes) else repr(value)
        data = spelled.encode(errors="surrogatepass")
        return f"hash:{hmac.digest(self._key, data, hashlib.sha256).hex()[:24]}"

    def _number(self, value: float) -> Any:
        """A number that spells nothing that a text must not spell."""
        if not LONG_NUMBER <= abs(value) < 1e20:
            return value
        spelled = str(int(value))
        redacted = self._redactor.text(spelled)
        return value if redacted == spelled else redacted

    def _place(self, signature: Signature, place: str) -> str:
        """Where an error is, if it is somewhere that the model knows: all else is the caller's
        text."""
        inside = _PLACE.fullmatch(place)
        name = place if inside is None else inside[1] or ""
        tensors = {spec.name for spec in (*signature.inputs, *signature.outputs)}
        known = tensors | {column.name for column in signature.columns} | {""}
        return place if name in known and self._redactor.text(name) == name else ""


class _Room:
    """How much of a document is left."""

    def __init__(self, size: int) -> None:
        self._left = size

    def takes(self, values: Array) -> bool:
        """Whether values may fit, by their number alone: nothing is spelled to find out."""
        if len(values) * 2 > self._left:
            return False
        if values.dtype != object:
            return True
        return sum([len(value) for value in values.tolist()]) <= self._left

    def fit(self, cells: list[Any] | None, values: Array | None) -> Any:
        """The cells, if they fit; else what says that they are left out, None without `values`."""
        size = len(_encode(cells)) if cells is not None else 0
        if cells is not None and size <= self._left:
            self._left -= size
            return cells
        if values is None:
            return None
        kind = "BYTES" if values.dtype == object else str(values.dtype)
        return {"datatype": kind, "shape": list(values.shape), "omitted": True}


def _outputs(payload: Payload) -> dict[str, Array]:
    names = [spec.name for spec in payload.signature.outputs]
    arrays = payload.outputs
    if not payload.alone:
        arrays = [array[payload.first : payload.first + payload.rows] for array in arrays]
    return dict(zip(names, arrays, strict=True))


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
