"""What a Requantize may be computed by, and which of it is cheapest."""

from __future__ import annotations

from dataclasses import replace

from secure_quant.ir import Graph, ops
from secure_quant.mpc.protocol.ramps import Ramp, choose_ramp
from secure_quant.mpc.protocol.reach import reach
from secure_quant.mpc.protocol.shifts import Shift, choose_shift, shift_of
from secure_quant.mpc.protocol.tables import Lookup, bits_of, candidates, flat_candidates
from secure_quant.mpc.protocol.versions import LONGER

__all__ = ["MOST_OF_A_ROUND", "ROUND_BITS", "Way", "cheapest", "ways"]

ROUND_BITS = 3500
"""Of material an element, that a round is worth where latency counts."""
MOST_OF_A_ROUND = 2**21
"""Bytes that a table in two rounds by digits (V5) may have there, whatever an element takes."""

Way = Lookup | Ramp | Shift


def ways(
    graph: Graph, node: ops.Requantize | ops.Rescale, ring: int, version: int, *, bare: bool = False
) -> list[Way]:
    """All that a plan of ``version`` may take, for an output in Z_2^ring; those that leave numbers
    masked by XOR with ``bare``. Raises OpNotSupported where there is none."""
    if isinstance(node, ops.Rescale):
        return [shift_of(node, reach(graph, node.inputs[0]), ring)]
    new = version > LONGER
    x = reach(graph, node.inputs[0]) if new else graph.values[node.inputs[0]].centred
    ramp = choose_ramp(node, x)
    flat = flat_candidates(node, x) if new else []
    found = [*candidates(node, x, cases=new), *flat]
    more = _bare(node, found) if bare else []
    shift = choose_shift(node, x, ring) if new else None
    return [*found, *(way for way in (ramp, shift) if way is not None), *more]


def _bare(node: ops.Requantize, found: list[Lookup]) -> list[Lookup]:
    """Of ``found``, those whose number, from the table's least entry on, may stay masked by XOR: of
    as few bits as it has."""
    floor = min(node.table)
    bits = max((max(node.table) - floor).bit_length(), 1)
    return [
        replace(look, lifted=False, out_bits=bits)
        for look in found
        if look.variant == "V4" and look.floor == floor
    ]


def cheapest(found: list[Way], elements: int, ring: int, objective: str, round_bytes: int) -> Way:
    """Of ``found``, for so many elements in Z_2^ring. round_bytes: of material, that a round is
    worth unless latency counts."""

    latency = objective == "latency"
    each = ROUND_BITS * elements if latency else 8 * round_bytes

    def price(way: Way) -> tuple[int, int]:
        return (bits_of(way, ring) * elements + each * len(way.payloads(ring)), way.ring)

    def by_digits(way: Way) -> bool:
        return isinstance(way, Lookup) and way.variant == "V5"

    if not latency:
        return min(found, key=price)
    best = min((way for way in found if not by_digits(way)), key=price)
    shorter = [
        way for way in found
        if by_digits(way) and len(way.payloads(ring)) < len(best.payloads(ring))
        and bits_of(way, ring) * elements <= 8 * MOST_OF_A_ROUND
    ]  # fmt: skip
    return min(shorter, key=price, default=best)
