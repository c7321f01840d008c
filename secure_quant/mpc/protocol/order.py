"""The tournament of a TopK: which groups, and the lookups of each level."""

from __future__ import annotations

from math import prod
from typing import Any

from secure_quant.errors import OpNotSupported
from secure_quant.ir import ops
from secure_quant.ir.values import Interval, Value
from secure_quant.mpc.protocol.gates.order import (
    GROUPS,
    INDEX_BITS,
    MOST_PLACES,
    Level,
    TopKGate,
    group_sizes,
)
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.mpc.protocol.tables import choose

__all__ = ["ordering", "tournament_of"]

_MOST_SHIFT = 56
"""Bits of a difference: four digits of the widest table."""


def tournament_of(node: ops.TopK, x: Value, objective: str) -> tuple[Level, ...]:
    """Of values ``x``. Raises OpNotSupported for several places of more candidates than one group
    may have."""
    candidates = x.shape[node.axis]
    most = GROUPS[objective]
    if node.count > 1:
        if candidates > MOST_PLACES:
            raise OpNotSupported(
                f"TopK {node.name!r} under secret sharing", got=f"{node.count} of {candidates}",
                expected=f"1, or several of at most {MOST_PLACES}",
                hint="output='argmax' for the first alone, or 'scores'",
            )  # fmt: skip
        most = candidates
    positions = prod(x.shape) // candidates
    apart = _difference(node, x)
    found = []
    for size in group_sizes(candidates, most):
        groups = -(-candidates // size)
        places = tuple(
            _place(node, size, place, (positions, groups, size), objective)
            for place in range(node.count)
        )
        ring = max(gate.look.ring for gate in places)
        shape = positions, groups, size * (size - 1) // 2
        found.append(Level(candidates, size, _compare(node, apart, shape, ring, objective), places))
        candidates = groups
    return tuple(found)


def ordering(
    node: ops.TopK, common: dict[str, Any], tournament: tuple[Level, ...], x: Value, zero: int
) -> TopKGate:
    """The gate. common: fields of any gate. zero: the zero point of ``x``."""
    positions = prod(x.shape) // x.shape[node.axis]
    width = tournament[0].compare.look.ring
    free, dealt = TopKGate.material(tournament, positions)
    return TopKGate(
        **common, multiplier=node.multiplier, axis=node.axis, source=x.shape, zero_point=zero,
        width=width, tournament=tournament, free_words=free, dealt_words=dealt,
        payloads=TopKGate.rounds(tournament, positions, width),
    )  # fmt: skip


def _difference(node: ops.TopK, x: Value) -> int:
    """The largest magnitude of one."""
    scaled = x.centred * Interval(min(node.multiplier), max(node.multiplier))
    return max(scaled.hi - scaled.lo, 1)


def _compare(
    node: ops.TopK, apart: int, shape: tuple[int, ...], ring: int, objective: str
) -> RequantizeGate:
    """1 where a difference is not negative, else 0."""
    shift = apart.bit_length()
    if shift > _MOST_SHIFT:
        raise OpNotSupported(
            f"TopK {node.name!r} under secret sharing", got=f"differences of {shift} bits",
            expected=f"<= {_MOST_SHIFT}",
        )  # fmt: skip
    return _gate(node, Interval(-apart, apart), 1 << shift, shift, (0, 1), shape, ring, objective)


def _place(
    node: ops.TopK, size: int, place: int, shape: tuple[int, ...], objective: str
) -> RequantizeGate:
    """1 where all but ``place`` are beaten, else 0."""
    table = tuple(int(wins == size - 1 - place) for wins in range(size))
    return _gate(node, Interval(0, size - 1), 0, 0, table, shape, INDEX_BITS, objective)


def _gate(
    node: ops.TopK, x: Interval, offset: int, shift: int, table: tuple[int, ...],
    shape: tuple[int, ...], ring: int, objective: str,
) -> RequantizeGate:  # fmt: skip
    step = ops.Requantize(
        name=node.name, inputs=node.inputs, multiplier=(1,), axis=-1, offset=offset, shift=shift,
        table=table, scale=1.0, zero_point=0,
    )  # fmt: skip
    look, count = choose(step, x, objective, ring), prod(shape)
    free, dealt = RequantizeGate.material(look, count, ring)
    return RequantizeGate(
        name=node.name, inputs=(), shape=shape, bits=ring, look=look, zero_point=0, axis=-1,
        free_words=free, dealt_words=dealt,
        payloads=tuple(((count, bits),) for bits in look.payloads(ring)),
    )  # fmt: skip
