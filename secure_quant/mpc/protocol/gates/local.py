"""Gates without a round: what is linear with public factors acts alike on a masked value and on
every share of its mask."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from secure_quant.ir import ops
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring

__all__ = ["LocalGate"]


@dataclass(frozen=True, kw_only=True)
class LocalGate(Gate):
    """zero_points: of the inputs, taken off the masked values alone (0 where the op moves q)."""

    node: ops.Node
    zero_points: tuple[int, ...]

    def apply(self, xs: list[Ring]) -> Ring:
        """uint64[batch, *shape] mod 2^bits, the op's linear map of ``xs``."""
        made: Ring = np.ascontiguousarray(_moved(self.node, xs))
        return reduce(made, self.bits)

    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        made: Ring = self.apply([mask[None] for mask in masks])[0]
        return made

    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        known = [mask for mask in masks if mask is not None]
        # Of a product that no gate behind needs a share of, there is none.
        return None, self.apply(known) if len(known) == len(masks) else None

    def online(
        self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]
    ) -> Generator[bytes, bytes, Wire]:
        pairs = zip(inputs, self.zero_points, strict=True)
        return Wire(self.apply([x.public - to_ring(zero, 64) for x, zero in pairs]), mask)
        yield b""  # a generator, without a round


def _moved(node: ops.Node, xs: list[Ring]) -> Ring:
    x, batch = xs[0], len(xs[0])
    match node:
        case ops.Add():
            shape = [1] * (x.ndim - 1)
            shape[node.axis] = len(node.factors) // 2
            f, g = to_ring(np.array(node.factors, np.int64).reshape(2, *shape), 64)
            made: Ring = f * x + g * xs[1]
            return made
        case ops.SumPool():
            return _sum_pool(x, node)
        case ops.ReduceSum():
            total: Ring = np.sum(x, axis=-1, keepdims=True, dtype=np.uint64)
            return total
        case ops.InputPort():
            end = node.start + prod(node.shape)
            return x[:, node.start : end].reshape(batch, *node.shape)
        case ops.Reshape():
            return x.reshape(batch, *node.shape)
        case ops.Transpose():
            return x.transpose(0, *(axis + 1 for axis in node.permutation))
        case ops.Slice():
            index = [slice(None)] * x.ndim
            index[node.axis + 1] = slice(node.start, node.stop, node.step)
            return x[tuple(index)]
        case ops.Gather():
            return x.take(node.index, axis=node.axis + 1)
        case ops.Concat():
            return np.concatenate(xs, axis=node.axis + 1)
    raise TypeError(f"{type(node).__name__} is not a local op")


def _sum_pool(x: Ring, node: ops.SumPool) -> Ring:
    """Along rows, then along columns: kh + kw passes."""
    made = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in node.padding)))
    for axis, kernel, stride in zip((2, 3), node.kernel, node.stride, strict=True):
        last = made.shape[axis] - kernel + 1
        index = [slice(None)] * 4
        parts = []
        for place in range(kernel):
            index[axis] = slice(place, place + last, stride)
            parts.append(made[tuple(index)])
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        made = total
    return made
