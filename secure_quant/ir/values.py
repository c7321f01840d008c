"""What a node makes: the shape and the proven integer range of its value."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

__all__ = ["INT8", "INT16", "INT32", "WIDE", "Interval", "Value"]


@dataclass(frozen=True, slots=True)
class Interval:
    """Integers from lo to hi, both included."""

    lo: int
    hi: int

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __sub__(self, constant: int) -> Interval:
        return Interval(self.lo - constant, self.hi - constant)

    def __mul__(self, other: Interval) -> Interval:
        ends = (self.lo * other.lo, self.lo * other.hi, self.hi * other.lo, self.hi * other.hi)
        return Interval(min(ends), max(ends))

    def times(self, factor: int) -> Interval:
        return self * Interval(factor, factor)

    def within(self, other: Interval) -> bool:
        return other.lo <= self.lo and self.hi <= other.hi

    def hull(self, other: Interval) -> Interval:
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    @property
    def magnitude(self) -> int:
        return max(-self.lo, self.hi, 0)


INT8 = Interval(-(2**7), 2**7 - 1)
INT16 = Interval(-(2**15), 2**15 - 1)
INT32 = Interval(-(2**31), 2**31 - 1)
WIDE = Interval(-(2**60), 2**60)
"""What sums and products of values, and what a Requantize makes of them, may reach: in
int64, with two bits left."""


@dataclass(frozen=True, slots=True)
class Value:
    """shape: per sample. range: of the carried integer q (of acc, for an accumulator).
    scale: of one unit of q or of ``acc · multiplier``. zero_point: 0 for an accumulator."""

    shape: tuple[int, ...]
    range: Interval
    scale: float
    zero_point: int
    accumulator: bool

    @property
    def centred(self) -> Interval:
        """Range of x̂ = q - zero_point."""
        return self.range - self.zero_point

    @property
    def size(self) -> int:
        return prod(self.shape)
