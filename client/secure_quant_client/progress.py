"""How far an inference is, for whoever asked to be told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from secure_quant.errors import ConfigError

__all__ = ["OnProgress", "Progress", "Telling"]

EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Progress:
    """Public: nothing of it depends on inputs or weights.

    fraction   of the work, 0 to 1, by what gates are known to take, so that a bar moves evenly.
    done, of   steps: exchanges of the two parties (secret sharing), or of client and host (one
               host); layers at the server (homomorphic encryption).
    stage      node of the public graph that is worked on; "" before, after, and where it is not
               known.
    """

    fraction: float
    done: int
    of: int
    stage: str = ""


OnProgress = Callable[[Progress], object]


class Telling:
    """Between an inference and who asked: no more than four words a second, none that goes back,
    and one at the end."""

    def __init__(self, told: OnProgress, clock: Callable[[], float] = time.monotonic) -> None:
        if not callable(told):
            raise ConfigError(
                "progress", got=type(told).__name__, expected="a function of a Progress"
            )
        self._told, self._clock = told, clock
        self._next, self._last = 0.0, Progress(-1.0, 0, 0)

    def __call__(self, progress: Progress) -> None:
        """Raises what whoever asked raises."""
        if progress.fraction > self._last.fraction and self._clock() >= self._next:
            self._next, self._last = self._clock() + EVERY_S, progress
            self._told(progress)

    def end(self) -> None:
        """The answer is there."""
        self._told(replace(self._last, fraction=1.0, done=self._last.of, stage=""))
