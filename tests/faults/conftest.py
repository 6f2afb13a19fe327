"""The data planes of `tests/serving`, for the faults that need no more than one."""

from tests.serving.conftest import new_plane

__all__ = ["new_plane"]
