"""aten op -> the function that lowers it. Each takes the walk and the fx node, and returns a Term
(or, for ops that make several values, a list of them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from secure_quant.quantizer.lower import arithmetic, layers, moves

__all__ = ["RULES"]

aten = torch.ops.aten

RULES: Mapping[Any, Callable[[Any, Any], Any]] = {
    aten.linear.default: layers.linear,
    aten.conv1d.default: layers.conv1d,
    aten.conv1d.padding: layers.conv1d,
    aten.conv2d.default: layers.conv2d,
    aten.conv2d.padding: layers.conv2d,
    aten.max_pool2d.default: layers.max_pool2d,
    aten.avg_pool2d.default: layers.avg_pool2d,
    aten.adaptive_avg_pool2d.default: layers.adaptive_avg_pool2d,
    aten.mean.dim: arithmetic.mean,
    aten.sum.dim_IntList: arithmetic.total,
    aten.amax.default: arithmetic.amax,
    aten.add.Tensor: arithmetic.add,
    aten.sub.Tensor: arithmetic.add,
    aten.mul.Tensor: arithmetic.mul,
    aten.matmul.default: arithmetic.matmul,
    aten.bmm.default: arithmetic.matmul,
    aten.view.default: moves.reshape,
    aten.reshape.default: moves.reshape,
    aten._unsafe_view.default: moves.reshape,
    aten.flatten.using_ints: moves.reshape,
    aten.unflatten.int: moves.reshape,
    aten.unsqueeze.default: moves.reshape,
    aten.squeeze.default: moves.reshape,
    aten.squeeze.dim: moves.reshape,
    aten.squeeze.dims: moves.reshape,
    aten.permute.default: moves.permute,
    aten.transpose.int: moves.transpose,
    aten.t.default: moves.transpose,
    aten.mT.default: moves.transpose_last,
    aten.slice.Tensor: moves.narrow,
    aten.select.int: moves.select,
    aten.chunk.default: moves.split,
    aten.split.Tensor: moves.split,
    aten.split_with_sizes.default: moves.split,
    aten.unbind.int: moves.unbind,
    aten.cat.default: moves.concat,
}
