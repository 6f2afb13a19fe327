"""Thresholds of trees in float32."""

from typing import Any

import numpy as np
import numpy.typing as npt


def floor(thresholds: npt.ArrayLike) -> npt.NDArray[Any]:
    """The largest float32 not above each threshold, as float64.

    For float32 data `x <= t` and `x <= floor(t)` are the same question; the nearest float32 may
    be a data value above `t`.
    """
    wide = np.asarray(thresholds, np.float64)
    single = wide.astype(np.float32)
    above = single.astype(np.float64) > wide
    single[above] = np.nextafter(single[above], np.float32(-np.inf))
    return single.astype(np.float64)
