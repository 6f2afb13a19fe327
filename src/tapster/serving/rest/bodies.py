"""JSON in and out: strict about what came, exact about what goes.

msgspec decodes; it lets a repeated key pass, so repetition is ruled out by counting quotation
marks: what was decoded accounts for an exact number of them, and a repeated or unknown key adds
to it. Only a body that does not add up is read again, slowly, with every key looked at. The same
slow reader understands the NaN and Infinity that Python's and TensorFlow's clients write.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from tapster.contract.errors import TapsterError

T = TypeVar("T")
_ENCODER: Final = msgspec.json.Encoder()
encode: Final = _ENCODER.encode
encode_lines: Final = _ENCODER.encode_lines
# Values that are spelled at once.
PIECE: Final = 1 << 14
# As numbers: looking for a byte is several times as fast as looking for a string of one.
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_CONSTANTS: Final = re.compile(rb"NaN|Infinity")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLACE: Final = re.compile(r" - at `\$\.?(.*)`$")


def invalid(message: str, *, hint: str = "", field: str = "") -> TapsterError:
    """A TapsterError(invalid)."""
    return TapsterError("invalid", message, hint=hint, field=field)


def decode(decoder: "msgspec.json.Decoder[T]", body: bytes | bytearray) -> T:
    """A decoded body. Raises TapsterError(invalid) saying what is wrong and where."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if _CONSTANTS.search(body):
            return _convert(decoder, body)
        raise _mistyped(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if _CONSTANTS.search(body) and not isinstance(error, RecursionError):
            return _convert(decoder, body)
        raise _malformed(error) from None


def accounted(body: bytes | bytearray, quotes: int) -> None:
    """Check that a body's quotation marks are those of what was decoded, or that no key repeats.

    Raises TapsterError(invalid) for a repeated key.
    """
    if body.count(_QUOTE) != quotes or _BACKSLASH in body:
        strict(body)


def strict(body: bytes | bytearray) -> Any:
    """A JSON document with no repeated key, NaN and Infinity understood.

    Raises TapsterError(invalid).
    """
    try:
        found = json.loads(
            body.decode(), object_pairs_hook=_unrepeated, parse_float=finite, parse_int=whole
        )
        json.dumps(found, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded
        return found
    except (ValueError, RecursionError) as error:
        raise _malformed(error) from None


def spell(values: Any, finite: bool) -> bytes:
    """Values as JSON; NaN, Infinity and -Infinity as these words, as Python and TF read them."""
    return encode(values) if finite else json.dumps(values, separators=(",", ":")).encode()


def spell_list(values: Sequence[Any], finite: bool) -> bytes:
    """A list as `spell` spells it, in pieces if it is long: others want the interpreter too."""
    if len(values) <= PIECE:
        return spell(values, finite)
    pieces = [spell(values[at : at + PIECE], finite)[1:-1] for at in range(0, len(values), PIECE)]
    return b"[%b]" % b",".join(pieces)


def check_text(text: str, what: str, limit: int = 1024) -> None:
    """Refuse control characters and excessive length in a name or identifier."""
    if len(text) > limit:
        raise invalid(f"{what} is longer than {limit} characters")
    if _CONTROL.search(text):
        raise invalid(f"{what} has a control character in it")


def shown(text: object) -> str:
    """A caller's text as it may stand in an error: short, with control characters escaped."""
    spelled = str(text)
    return repr(spelled if len(spelled) <= 100 else spelled[:97] + "...")


def _convert(decoder: "msgspec.json.Decoder[T]", body: bytes | bytearray) -> T:
    try:
        converted: T = msgspec.convert(strict(body), decoder.type)
        return converted
    except msgspec.ValidationError as error:
        raise _mistyped(error) from None


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise invalid(
                    f"the key {shown(name)} is there twice",
                    hint="give each key once",
                    field=name[:100],
                )
            seen.add(name)
    return found


def finite(text: str) -> float:
    """A number of a JSON document. Raises ValueError when no float can hold it."""
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is out of range")
    return number


def whole(text: str) -> int:
    """A whole number of a JSON document. Raises ValueError when it is absurdly long."""
    if len(text) > 40:
        raise ValueError("a number is out of range")
    return int(text)


def _malformed(error: Exception) -> TapsterError:
    if isinstance(error, TapsterError):
        return error
    if isinstance(error, RecursionError):
        return invalid("the body is nested too deeply")
    if isinstance(error, UnicodeError):
        return invalid("the body is not UTF-8 text")
    text = str(error).removeprefix("JSON is malformed: ")[:200]
    return invalid(f"the body is not JSON: {text}", hint="send one JSON object")


def _mistyped(error: msgspec.ValidationError) -> TapsterError:
    text = str(error)
    place = _PLACE.search(text)
    where = place[1] if place else ""
    reason = text[: place.start()] if place else text
    message = reason[:1].lower() + reason[1:]
    return invalid(f"{where}: {message}" if where else message, field=where[:100])
