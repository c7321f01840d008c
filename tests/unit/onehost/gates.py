"""One gate, its joint offline half, and its online half, both ends in one process."""

from __future__ import annotations

from typing import Any

import numpy as np

from secure_quant.mpc.protocol.gates.base import Wire
from secure_quant.mpc.protocol.ring import centred, reduce, to_ring
from secure_quant.onehost.cot import Pairing
from tests.unit.mpc.protocol.harness import drive as rounds_of
from tests.unit.onehost.drive import both, drive, words


def in_one_piece(joint: Any, pairing: Pairing, masks: Any, out: Any) -> Any:
    """A gate's joint half, in one piece."""
    some = slice(0, joint.places(len(out)))
    part = yield from joint.piece(pairing, masks, out, some)
    return joint.joined(pairing.party, [part], masks, out)


def prepared(joint: Any, pairs: list[Pairing], masks: Any) -> tuple[list[Any], list[int]]:
    """What both ends' offline halves make for the shares ``masks`` of the input's mask, and the
    bytes each sent besides the extension."""
    batch = len(masks[0])
    wanted = joint.cots(batch)
    _, _, filled = both(pairs, lambda p: p.fill(*wanted))
    runs = [
        in_one_piece(joint, p, r, joint.fresh(p, batch)) for p, r in zip(pairs, masks, strict=True)
    ]
    one, two, sent = drive(*runs)
    assert len(filled) == 1
    return [one, two], [sum(side) for side in zip(*sent, strict=True)]


def online(gate: Any, made: list[Any], x: Any, masks: Any) -> tuple[Any, Any]:
    """x: int64[batch, *shape]. The values, centred mod 2^bits, and both ends' payloads."""
    masked = to_ring(x, 64) + masks[0] + masks[1]
    wires = [Wire(masked, own) for own in masks]
    runs = [
        gate.online(end.side, end.offset, end.mask, [wire])
        for end, wire in zip(made, wires, strict=True)
    ]
    one, two, rounds = rounds_of(*runs)
    assert (one.masked == two.masked).all()
    opened = reduce(one.masked - one.mask - two.mask, gate.bits)
    return centred(opened, gate.bits), rounds


def shares(rng: np.random.Generator, *shape: int) -> list[Any]:
    return [words(rng, *shape) for _ in range(2)]
