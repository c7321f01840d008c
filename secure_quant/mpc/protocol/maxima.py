"""Which gate finds a maximum: tournaments of 2, 3 or 4 by tables or by digits, or counting."""

from __future__ import annotations

from math import prod
from typing import Any

from secure_quant.ir import ops
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.gates.counting import MOST_LEVELS, CountingGate
from secure_quant.mpc.protocol.gates.maximum import MaximumGate, cut_digits, levels

__all__ = ["cheapest_maximum", "countings", "maxima"]

POOL_ROUND = 2**18
"""Bytes at least that a round of a maximum is worth where objectives are balanced."""
WIDE = 10
"""Bits of a difference above which the six tables of a maximum of 4 are no bargain (int16)."""


def maxima(
    node: ops.MaxPool | ops.ReduceMax, common: dict[str, Any], source: tuple[int, ...],
    x: Interval, width: int, objective: str, *, tables_alone: bool, counts: bool,
    tallies: bool,
) -> list[MaximumGate | CountingGate]:  # fmt: skip
    """Gates worth a look for values in ``x``, of whose differences ``width`` bits hold each.
    ``common``: fields of any gate. ``tables_alone``: no digits. ``counts``: by counting too;
    ``tallies``: in two rounds too."""
    outputs, ring = prod(common["shape"]), common["bits"]
    candidates = MaximumGate.candidates(node, source)
    pairwise = objective == "traffic" or width > WIDE
    ways: list[tuple[int, tuple[int, ...]]] = [(2 if pairwise else 4, ())]
    digits = () if tables_alone else cut_digits(width - 1)
    if digits and objective != "latency":
        ways += [(arity, digits) for arity in (2, 3, 4)]
    made: list[MaximumGate | CountingGate] = []
    for arity, digits in ways:
        tournament = levels(candidates, arity)
        free, dealt = MaximumGate.material(tournament, outputs, width, ring, digits)
        made.append(
            MaximumGate(
                **common, node=node, width=width, source=source, tournament=tournament,
                digits=digits, free_words=free, dealt_words=dealt,
                payloads=MaximumGate.rounds(tournament, outputs, ring, digits),
            )
        )  # fmt: skip
    number = x.hi - x.lo + 1
    if counts and isinstance(node, ops.ReduceMax) and 1 < number <= MOST_LEVELS:
        made += countings(node, common, source, x)[: 2 if tallies else 1]
    return made


def countings(
    node: ops.ReduceMax, common: dict[str, Any], source: tuple[int, ...], x: Interval, *,
    bare: bool = False,
) -> list[CountingGate]:  # fmt: skip
    """By counting, in three rounds and in two. ``bare``: numbers from x.lo on, masked by XOR."""
    levels, ring = x.hi - x.lo + 1, common["bits"]
    made = []
    for summed in (False, True):
        free, dealt = CountingGate.material(source, levels, ring, summed=summed)
        made.append(
            CountingGate(
                **common, node=node, low=x.lo, levels=levels, source=source, summed=summed,
                bare=bare, free_words=free, dealt_words=dealt,
                payloads=CountingGate.rounds(source, levels, ring, summed=summed),
            )
        )  # fmt: skip
    return made


def cheapest_maximum(
    found: list[MaximumGate | CountingGate], objective: str, round_bytes: int
) -> MaximumGate | CountingGate:
    """Of ``found``. round_bytes: of material, that a round is worth unless latency counts."""
    if objective == "latency":
        return min(found, key=lambda gate: (len(gate.payloads), gate.dealt_words))
    if objective == "balanced":
        round_bytes = max(round_bytes, POOL_ROUND)
    return min(found, key=lambda gate: 8 * gate.dealt_words + round_bytes * len(gate.payloads))
