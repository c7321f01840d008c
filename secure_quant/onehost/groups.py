"""What is made side by side ahead of time: gates, or pieces of large ones, in groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from secure_quant.onehost.cases import JointCases
from secure_quant.onehost.maximum import JointMaximum
from secure_quant.onehost.product import JointProduct
from secure_quant.onehost.ramp import JointRamp
from secure_quant.onehost.requantize import JointRequantize

__all__ = ["GRAIN", "GROUP", "Half", "Piece", "groups", "pieces", "summed"]

GROUP = 2**21
"""COTs of what is made side by side, some 200 bytes each."""
GRAIN = 64
"""A piece's elements are a multiple of it, so that its messages end with a byte wherever the whole
gate's do not: in pieces a gate sends the same bytes."""
Half = JointCases | JointRequantize | JointRamp | JointMaximum | JointProduct
"""The joint half of a gate that is made of COTs."""


@dataclass(frozen=True)
class Piece:
    """Elements ``some`` of the gate ``name``, of all samples end to end. cots: by chooser. last:
    the gate is made when it is."""

    name: str
    some: slice
    cots: tuple[int, int]
    last: bool


def groups(halves: Mapping[str, Half], batch: int) -> list[list[Piece]]:
    """Pieces of all halves, in order, that are made side by side: they take at most GROUP COTs, or
    are one piece, since all of a group's keys are in memory at once."""
    made: list[list[Piece]] = [[]]
    taken = 0
    for name, half in halves.items():
        for piece in pieces(name, half, batch):
            cots = sum(piece.cots)
            if made[-1] and taken + cots > GROUP:
                made.append([])
                taken = 0
            made[-1].append(piece)
            taken += cots
    return made


def pieces(name: str, half: Half, batch: int) -> list[Piece]:
    """A gate, in pieces that take at most GROUP COTs or have GRAIN elements."""
    places = half.places(batch)
    one, two = (count // places for count in half.cots(batch))  # an element's
    size = max(GROUP // max(one + two, 1) // GRAIN, 1) * GRAIN
    made = []
    for first in range(0, places, size):
        end = min(first + size, places)
        cots = one * (end - first), two * (end - first)
        made.append(Piece(name, slice(first, end), cots, end == places))
    return made


def summed(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Of either chooser."""
    firsts, seconds = zip((0, 0), *pairs, strict=True)
    return sum(firsts), sum(seconds)
