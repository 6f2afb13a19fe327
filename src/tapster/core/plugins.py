"""Plug-ins by entry point; ours come through the same door as strangers'."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tapster.contract.errors import TapsterError


@cache
def _points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> list[str]:
    """Names of the plug-ins of a group, such as `tapster.trainers`."""
    return sorted(_points(group))


def load(group: str, name: str) -> Any:
    """The object a plug-in names.

    Raises TapsterError(invalid) for an unknown name and TapsterError(unavailable) when the
    plug-in's own libraries are not installed.
    """
    point = _points(group).get(name)
    if point is None:
        known = ", ".join(names(group))
        raise TapsterError("invalid", f"there is no {name!r}", hint=f"choose one of: {known}")
    try:
        return point.load()
    except ImportError as error:
        raise TapsterError(
            "unavailable",
            f"{name!r} needs a library that is not installed: {error.name}",
            hint=f"pip install {error.name}, or the extra of tapster that names it",
        ) from error
