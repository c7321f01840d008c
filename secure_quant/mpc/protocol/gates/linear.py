"""Linear and Conv2d with secret weights: one matrix product a party and one opening.

Once per deployment D_W = W + r_W mod 2^k is public to the parties and r_W = r_W0 + r_W1 comes from
two seeds. With x̂ = D - r: W·x̂ = (D_W - r_W)·D - D_W·r + r_W·r. Party i computes

    c_i = A_i·D + off_i,   A_0 = D_W - r_W0,  A_1 = -r_W1,   off_i = z_i + [b]_i - D_W·[r]_i

and the dealer defines the mask of the sum, r_c = z_0 + z_1 - r_W·r: nothing is dealt. Where the
value leaves as shares, r_W·r is dealt as such, and z falls away.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_quant.ir import ops
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.products import Narrow, of_image, of_rows, padded
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring

__all__ = ["LinearGate", "PartyWeights", "weight_shape"]


@dataclass(frozen=True, repr=False)
class PartyWeights:
    """masked: D_W. factor: A_i. bias: [b]_i, uint64[out]."""

    masked: Narrow
    factor: Narrow
    bias: Ring


def weight_shape(node: ops.Linear | ops.Conv2d) -> tuple[int, int, int]:
    """[groups, out per group, inner]: the weight as the left factors of a matrix product."""
    if isinstance(node, ops.Linear):
        return 1, node.out_features, node.in_features
    inner = node.in_channels // node.groups * node.kernel[0] * node.kernel[1]
    return node.groups, node.out_channels // node.groups, inner


@dataclass(frozen=True, kw_only=True)
class LinearGate(Gate):
    """bits: of the ring the sum is computed in. opened: False where the Output reads the sum, or
    ports of it; then nothing else does, as the graph's verifier makes sure."""

    node: ops.Linear | ops.Conv2d
    zero_point: int
    opened: bool

    def apply(self, weight: Narrow, x: Ring, zero: int = 0, onto: Ring | None = None) -> Ring:
        """weight · (x - zero), and ``onto``, which is overwritten, right mod 2^bits, for x [batch,
        *input shape]; padded with 0. weight: ``narrow_kind(bits)`` in ``weight_shape``."""
        node = self.node
        if isinstance(node, ops.Conv2d):
            image, places = padded(x, zero, self.bits, node.padding), of_image(node, x.shape[1:])
            return places.times(weight, image, len(x), onto).reshape(len(x), *self.shape)
        flat = reduce(x - to_ring(zero, 64), self.bits).reshape(-1, node.in_features)
        turned = of_rows(*flat.shape).times(weight, flat, 1)[0, 0]
        made: Ring = turned.T.reshape(len(x), *self.shape)
        return made if onto is None else made + onto

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        made = self.apply(side.parameters, masks[0][None])[0]
        if not self.opened:
            side.dealt[:] = made.reshape(-1) - side.dealt
            return np.zeros(self.shape, np.uint64)
        return reduce((side.free0 + side.free1).reshape(self.shape) - made, self.bits)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        weights: PartyWeights = side.parameters
        made = self.apply(weights.masked, Wire(mask=masks[0]).own)
        source = side.free if self.opened else np.stack(list(side.dealt))
        np.subtract(source.reshape(made.shape), made, out=made)
        axis = (-1,) if isinstance(self.node, ops.Linear) else (-1, 1, 1)
        made += weights.bias.reshape(axis)
        return made, None

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        weights: PartyWeights = side.parameters
        own = self.apply(weights.factor, inputs[0].public, self.zero_point, onto=state)
        if not self.opened:
            return Wire(share=own)
        masked = yield from opening(reduce(own, self.bits), self.bits)
        return Wire(masked)
