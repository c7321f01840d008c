"""Limits of time for tests, as long as this machine makes them.

They say that something hangs, not that it is slow; what must be fast is measured by ``bench``.
"""

from __future__ import annotations

import time
from functools import cache

__all__ = ["ample", "scale"]

WORK, WORK_S = 2_000_000, 0.06
"""Turns of a loop, and their time on an idle core of the machine for which limits are written."""
MOST = 6.0


@cache
def scale() -> float:
    """How much longer everything takes here and now: measured once, at least 1."""
    begun = time.perf_counter()
    for _ in range(WORK):
        pass
    return min(MOST, max(1.0, (time.perf_counter() - begun) / WORK_S))


def ample(limit: float) -> float:
    """A limit that is ample on an idle machine, for this one: twice, times ``scale``."""
    return 2 * limit * scale()
