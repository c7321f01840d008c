"""What an fx node stands for while the converted graph is lowered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir.values import Interval

__all__ = ["Dynamic", "Function", "Term", "Weight"]

Real = NDArray[np.float64]
Function = Callable[[Real], Real]


@dataclass(frozen=True)
class Dynamic:
    """What a value of a run-time scale waits for until it is a Rescale or enters a layer.

    factor: name of the DynamicScale that multiplies it. bias: real[out] to add, or None.
    typical: a common large |acc · multiplier|, from which fixed-point steps are chosen.
    """

    factor: str
    typical: float
    bias: NDArray[np.float64] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Term:
    """``function(x̂ or acc · multiplier, times scale)`` of the ir value ``name``.

    shape: per sample, as the model sees it; an accumulator that cannot be reshaped yet has
    ``own_shape`` in the ir. range: of the integers q or acc. The functions apply in order;
    ``limits`` says what they are where they only clamp, None otherwise. ``channels``: the factor of
    each channel of the last axis, of an activation that only sums may read. ``real``: what a unit
    of an accumulator is worth in each channel along ``axis``, where that is given and no whole
    multiple of anything; multiplier and scale say nothing then. ``sizes``: of a sum, the largest
    |acc| in each channel of the last axis, where that differs.
    """

    name: str
    shape: tuple[int, ...]
    range: Interval
    scale: float
    zero_point: int = 0
    accumulator: bool = False
    multiplier: tuple[int, ...] = (1,)
    axis: int = -1
    functions: tuple[Function, ...] = ()
    own_shape: tuple[int, ...] | None = None
    limits: tuple[float, float] | None = (-math.inf, math.inf)
    dynamic: Dynamic | None = None
    channels: tuple[float, ...] = ()
    real: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """True for an integer activation as it stands, ready to enter any op."""
        return not self.accumulator and not self.functions and not self.channels

    @property
    def rounds_alone(self) -> bool:
        """True for an accumulator of a known scale as it stands: no function, no clamp."""
        known = self.accumulator and self.dynamic is None and not self.real
        return known and not self.functions and self.own_shape is None

    @property
    def centred(self) -> Interval:
        return self.range - self.zero_point

    @property
    def span(self) -> Interval:
        """Range of acc · multiplier, or of x̂."""
        x = self.centred
        return x.times(max(self.multiplier)).hull(x.times(min(self.multiplier)))

    def apply(self, y: Real) -> Real:
        """The functions on real values."""
        for function in self.functions:
            y = function(y)
        return y


@dataclass(frozen=True)
class Weight:
    """int8[out, ...] with real value ``values[c] · multiplier[c] · base``; ``values[c] · real[c]``
    where scales are given that are no small multiples of one number."""

    values: NDArray[np.int8] = field(repr=False)
    multiplier: tuple[int, ...]
    base: float
    real: tuple[float, ...] = ()

    @property
    def steps(self) -> Real:
        """float64[out]: the scale of each channel."""
        own = self.real or tuple(m * self.base for m in self.multiplier)
        return np.broadcast_to(np.array(own, np.float64), len(self.values))

    @staticmethod
    def of(values: NDArray[Any], scales: NDArray[Any]) -> Weight:
        """Finds the integers behind per-channel scales m[c] · base with the least max(m)."""
        top = float(scales.max())
        for largest in range(1, 256):
            steps = scales.astype(np.float64) * (largest / top)
            whole = np.rint(steps)
            if whole.min() >= 1 and np.abs(steps - whole).max() < 1e-4:
                multiplier = tuple(int(m) for m in whole)
                if len(set(multiplier)) == 1:
                    multiplier = multiplier[:1]
                return Weight(values.astype(np.int8), multiplier, top / largest)
        raise ValueError("channel scales are no small multiples of one number")
