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
from numpy.typing import NDArray

from secure_quant.ir import ops
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire, opening
from secure_quant.mpc.protocol.ring import Ring, columns, limb_counts, reduce, split, to_ring
from secure_quant.mpc.protocol.weights import Weights

__all__ = ["LinearGate", "PartyWeights", "weight_shape"]


@dataclass(frozen=True)
class PartyWeights:
    """masked: D_W. factor: A_i. bias: [b]_i, uint64[out]."""

    masked: Weights
    factor: Weights
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

    @property
    def counts(self) -> tuple[int, int]:
        """Limbs of weights and of data."""
        return limb_counts(self.bits, weight_shape(self.node)[2])

    def weights(self, data: NDArray[Any], *, kept: bool) -> Weights:
        """For ``apply``: uint32 in ``weight_shape``, or uint64 in rings above 32 bits."""
        return Weights(data, self.bits, self.counts[0], kept)

    def apply(self, weight: Weights, x: Ring) -> Ring:
        """weight · x̂ mod 2^bits for x [batch, *input shape], padded with 0."""
        limbs = split(reduce(x, self.bits), self.bits, self.counts[1])
        node = self.node
        if isinstance(node, ops.Linear):
            flat = weight.times(limbs.map(lambda part: part.reshape(1, -1, part.shape[-1]).mT))
            return np.ascontiguousarray(flat[0].T).reshape(*x.shape[:-1], node.out_features)
        made = weight.times(limbs.map(lambda part: columns(part, node)))
        return made.reshape(len(x), *self.shape)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        made = self.apply(side.parameters, masks[0][None])[0]
        if not self.opened:
            side.dealt[:] = made.reshape(-1) - side.dealt
            return np.zeros(self.shape, np.uint64)
        return reduce((side.free0 + side.free1).reshape(self.shape) - made, self.bits)

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        weights: PartyWeights = side.parameters
        made = np.uint64(0) - self.apply(weights.masked, Wire(mask=masks[0]).own)
        axis = (-1,) if isinstance(self.node, ops.Linear) else (-1, 1, 1)
        made += weights.bias.reshape(axis)
        source = side.free if self.opened else np.stack(list(side.dealt))
        made += source.reshape(made.shape)
        return made, None

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        weights: PartyWeights = side.parameters
        x = inputs[0].public - to_ring(self.zero_point, 64)
        own = self.apply(weights.factor, x) + state
        if not self.opened:
            return Wire(share=own)
        masked = yield from opening(reduce(own, self.bits), self.bits)
        return Wire(masked)
