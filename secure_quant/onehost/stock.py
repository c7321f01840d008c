"""Correlated OTs that were made and not given away yet, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from secure_quant.onehost.permutation import Words

__all__ = ["Stock"]


class Stock:
    """Rows of arrays that came one after the other. What was given away is kept no longer than the
    last row of the array that it lies in."""

    def __init__(self) -> None:
        self._parts: deque[Words] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, parts: Iterable[Words]) -> None:
        """uint64[n, ...] each."""
        for part in parts:
            if len(part):
                self._parts.append(part)
                self._count += len(part)

    def take(self, count: int) -> Words:
        """The first ``count`` rows, at least one: of one array where they lie in one."""
        made: list[Words] = []
        self._count -= count
        while count:
            part = self._parts.popleft()
            made.append(part[:count])
            if len(part) > count:
                self._parts.appendleft(part[count:])
            count -= len(made[-1])
        return made[0] if len(made) == 1 else np.concatenate(made)
