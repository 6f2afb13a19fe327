"""References to models, as people write them: NAME, NAME@VERSION, NAME:ALIAS."""

import re
from typing import Final

from tapster.contract.errors import TapsterError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ALIAS: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")
# A model of another tenant's is called OWNER--NAME: both names, and what parts them.
_CALLED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,164}")


def parse(ref: str) -> tuple[str, int, str]:
    """(model, version or 0, alias or "") of a reference. Raises TapsterError(invalid)."""
    model, at, version = ref.partition("@")
    model, colon, alias = model.partition(":") if not at else (model, "", "")
    good = _CALLED.fullmatch(model) and (not at or number(version))
    if not good or (colon and not ALIAS.fullmatch(alias)):
        raise TapsterError(
            "invalid",
            f"{ref[:250]!r} does not refer to a model",
            hint="write NAME, NAME@VERSION (a whole number) or NAME:ALIAS",
            field="model",
        )
    return model, int(version or 0), alias


def spell(model: str, version: int, alias: str) -> str:
    """The reference that `parse` takes apart so."""
    return f"{model}@{version}" if version else f"{model}:{alias}" if alias else model


def number(text: str) -> bool:
    """Whether this is a version's number."""
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0
