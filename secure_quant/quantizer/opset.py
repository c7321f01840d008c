"""Which aten ops are what: the one table that the annotator and the lowering share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Node

__all__ = [
    "ADDITIVE",
    "CHANNELS",
    "CONCAT",
    "ELEMENTWISE",
    "MONOTONE",
    "PRODUCTS",
    "SHAPING",
    "SUMS",
    "WEIGHTED",
    "find_roots",
    "tensor_inputs",
]

aten = torch.ops.aten

PRODUCTS = {
    aten.linear.default,
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.matmul.default,
    aten.bmm.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
}
"""Ops whose value is an accumulator."""

WEIGHTED = {
    aten.linear.default,
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
}
"""Layers: their second argument is a weight that is rounded."""

SUMS = {aten.mean.dim, aten.sum.dim_IntList}
"""Sums over axes: accumulators too."""

ADDITIVE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
}
"""Accumulators of two tensors, or elementwise with a constant."""

ELEMENTWISE = {
    aten.abs.default,
    aten.atan.default,
    aten.celu.default,
    aten.clamp.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.cos.default,
    aten.elu.default,
    aten.erf.default,
    aten.exp.default,
    aten.expm1.default,
    aten.gelu.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.leaky_relu.default,
    aten.log.default,
    aten.log1p.default,
    aten.log_sigmoid.default,
    aten.mish.default,
    aten.neg.default,
    aten.pow.Tensor_Scalar,
    aten.reciprocal.default,
    aten.relu.default,
    aten.relu6.default,
    aten.rsqrt.default,
    aten.rsub.Scalar,
    aten.selu.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sin.default,
    aten.softplus.default,
    aten.softshrink.default,
    aten.sqrt.default,
    aten.square.default,
    aten.tanh.default,
    aten.threshold.default,
}
"""Functions of one tensor, element by element: all of them end up in a Requantize table."""

SHAPING = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.mT.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.slice.Tensor,
    aten.select.int,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
}
"""Moves of the same integers."""

MONOTONE = {aten.max_pool2d.default, aten.amax.default}
"""Maxima: they keep scale and zero point."""

CONCAT = {aten.cat.default, aten.stack.default}


CHANNELS = "secure_quant_channels"
"""Key in ``node.meta``: true for a product with a constant for each channel that gives an
activation its channels' scales. Its integers stay, and only sums read it."""


def tensor_inputs(node: Node, roots: Mapping[Node, Node]) -> list[Node]:
    """The inputs of ``node`` that carry data of the sample, in order, once each."""
    return [n for n in node.all_input_nodes if n in roots]


def find_roots(nodes: list[Node]) -> dict[Node, Node]:
    """Node -> the node whose value it is an elementwise function of (itself, if of none).

    Nodes that do not depend on the input (weights, sizes) are absent.
    """
    roots: dict[Node, Node] = {}
    for node in nodes:
        if node.op == "placeholder":
            roots[node] = node
            continue
        if node.target is aten.sym_size.int:
            continue
        origins = {roots[n] for n in tensor_inputs(node, roots)}
        if not origins:
            continue
        pointwise = node.target in ELEMENTWISE or node.target in ADDITIVE
        pointwise = pointwise and not node.meta.get(CHANNELS)
        roots[node] = origins.pop() if pointwise and len(origins) == 1 else node
    return roots
