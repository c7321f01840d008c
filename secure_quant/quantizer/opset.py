"""The one table of aten ops: of what kind each is, how it is lowered, and to which integer ops.

The annotator, the passes and the lowering read it. Ops that are not here are rewritten by a pass
into ops that are, or refused by name before calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from secure_quant.ir import ops
from secure_quant.quantizer.lower import arithmetic, layers, moves, pointwise, reductions
from secure_quant.quantizer.lower.walk import Rule
from secure_quant.quantizer.notes import CHANNELS
from secure_quant.quantizer.positions import POSITIONS

__all__ = [
    "ADDITIVE",
    "CASTS",
    "CHANNELS",
    "CONCAT",
    "COPIES",
    "ELEMENTWISE",
    "MONOTONE",
    "OPS",
    "PRODUCTS",
    "REARRANGING",
    "SHAPING",
    "SUMS",
    "WEIGHTED",
    "Kind",
    "Op",
    "find_roots",
    "tensor_inputs",
]

aten = torch.ops.aten


class Kind(Enum):
    """What an op is to the annotator, which decides where an integer activation stands."""

    LAYER = auto()
    """An accumulator of products with a weight, its second argument, that is rounded."""
    PRODUCT = auto()
    """An accumulator of two values, or over windows of one."""
    SUM = auto()
    """An accumulator over axes."""
    ADDITIVE = auto()
    """An accumulator of two values; of one value a function of it."""
    FUNCTION = auto()
    """A function of one value, element by element: it ends up in a Requantize table."""
    MOVE = auto()
    """The same integers in other places."""
    MAXIMUM = auto()
    """Some of the integers: scale and zero point stay."""
    JOIN = auto()
    """Values side by side, all on one grid."""


class Op(NamedTuple):
    """makes: the integer ops of which its value consists; the first is always there."""

    kind: Kind
    lower: Rule
    makes: tuple[type[ops.Node], ...]


_LINEAR = Op(Kind.LAYER, layers.linear, (ops.Linear,))
_CONV1D = Op(Kind.LAYER, layers.conv1d, (ops.Conv2d, ops.Reshape))
_CONV2D = Op(Kind.LAYER, layers.conv2d, (ops.Conv2d,))
_MATMUL = Op(Kind.PRODUCT, arithmetic.matmul, (ops.MatMul,))
_AVERAGE = (ops.SumPool,)
_REDUCED = (ops.ReduceSum, ops.SumPool, ops.Transpose, ops.Reshape)
_ADD = Op(Kind.ADDITIVE, arithmetic.add, (ops.Add, ops.Reshape))
_FUNCTION = Op(Kind.FUNCTION, pointwise.function, (ops.Requantize,))
_RESHAPE = Op(Kind.MOVE, moves.reshape, (ops.Reshape,))
_SPLIT = Op(Kind.MOVE, moves.split, (ops.Slice,))

_FUNCTIONS = (
    aten.abs.default, aten.acos.default, aten.acosh.default, aten.asin.default, aten.asinh.default,
    aten.atan.default, aten.atan2.default, aten.atanh.default, aten.ceil.default, aten.celu.default,
    aten.clamp.default, aten.clamp_max.default, aten.clamp_min.default, aten.copysign.Scalar,
    aten.copysign.Tensor, aten.cos.default, aten.cosh.default, aten.deg2rad.default,
    aten.digamma.default, aten.div.Tensor, aten.div.Tensor_mode, aten.elu.default, aten.erf.default,
    aten.erfc.default, aten.erfinv.default, aten.exp.default, aten.exp2.default, aten.expm1.default,
    aten.floor.default, aten.floor_divide.default, aten.fmod.Scalar, aten.fmod.Tensor,
    aten.frac.default, aten.gelu.default, aten.hardshrink.default, aten.hardsigmoid.default,
    aten.hardswish.default, aten.hardtanh.default, aten.heaviside.default,
    aten.i0.default, aten.leaky_relu.default, aten.lgamma.default, aten.log.default,
    aten.log10.default, aten.log1p.default, aten.log2.default, aten.log_sigmoid.default,
    aten.logaddexp2.default, aten.logit.default, aten.max.other,
    aten.maximum.default, aten.min.other, aten.minimum.default, aten.mish.default,
    aten.nan_to_num.default, aten.neg.default, aten.pow.Scalar, aten.pow.Tensor_Scalar,
    aten.pow.Tensor_Tensor, aten.rad2deg.default, aten.reciprocal.default, aten.relu.default,
    aten.relu6.default, aten.remainder.Scalar, aten.remainder.Tensor, aten.round.decimals,
    aten.round.default, aten.rsqrt.default, aten.rsub.Scalar, aten.selu.default,
    aten.sigmoid.default, aten.sign.default, aten.silu.default, aten.sin.default, aten.sinc.default,
    aten.sinh.default, aten.softplus.default, aten.softshrink.default, aten.special_entr.default,
    aten.special_erfcx.default, aten.special_i0e.default, aten.special_i1.default,
    aten.special_i1e.default, aten.special_log_ndtr.default, aten.special_ndtr.default,
    aten.special_ndtri.default, aten.special_xlog1py.default, aten.sqrt.default,
    aten.square.default, aten.tan.default, aten.tanh.default, aten.threshold.default,
    aten.trunc.default, aten.xlogy.Tensor,
)  # fmt: skip

OPS: dict[Any, Op] = {
    aten.linear.default: _LINEAR,
    aten.conv1d.default: _CONV1D,
    aten.conv2d.default: _CONV2D,
    POSITIONS: Op(Kind.LAYER, layers.positions, (ops.Conv2d,)),
    aten.matmul.default: _MATMUL,
    aten.bmm.default: _MATMUL,
    aten.avg_pool2d.default: Op(Kind.PRODUCT, layers.avg_pool2d, _AVERAGE),
    aten.adaptive_avg_pool2d.default: Op(Kind.PRODUCT, layers.adaptive_avg_pool2d, _AVERAGE),
    aten.mean.dim: Op(Kind.SUM, reductions.mean, _REDUCED),
    aten.sum.dim_IntList: Op(Kind.SUM, reductions.total, _REDUCED),
    aten.add.Tensor: _ADD,
    aten.sub.Tensor: _ADD,
    aten.rsub.Tensor: _ADD,
    aten.mul.Tensor: Op(Kind.ADDITIVE, arithmetic.mul, (ops.Mul, ops.Add, ops.Reshape)),
    **dict.fromkeys(_FUNCTIONS, _FUNCTION),
    aten.max_pool2d.default: Op(Kind.MAXIMUM, layers.max_pool2d, (ops.MaxPool,)),
    aten.amax.default: Op(
        Kind.MAXIMUM, reductions.amax, (ops.ReduceMax, ops.Transpose, ops.Reshape)
    ),
    aten.reshape.default: _RESHAPE,
    aten.flatten.using_ints: _RESHAPE,
    aten.unflatten.int: _RESHAPE,
    aten.unsqueeze.default: _RESHAPE,
    aten.squeeze.default: _RESHAPE,
    aten.squeeze.dim: _RESHAPE,
    aten.squeeze.dims: _RESHAPE,
    aten.permute.default: Op(Kind.MOVE, moves.permute, (ops.Transpose,)),
    aten.transpose.int: Op(Kind.MOVE, moves.transpose, (ops.Transpose,)),
    aten.mT.default: Op(Kind.MOVE, moves.transpose_last, (ops.Transpose,)),
    aten.slice.Tensor: Op(Kind.MOVE, moves.narrow, (ops.Slice,)),
    aten.select.int: Op(Kind.MOVE, moves.select, (ops.Slice, ops.Reshape)),
    aten.index_select.default: Op(Kind.MOVE, moves.gather, (ops.Gather,)),
    aten.chunk.default: _SPLIT,
    aten.split.Tensor: _SPLIT,
    aten.split_with_sizes.default: _SPLIT,
    aten.unbind.int: Op(Kind.MOVE, moves.unbind, (ops.Slice, ops.Reshape)),
    aten.cat.default: Op(Kind.JOIN, moves.concat, (ops.Concat,)),
}  # fmt: skip


def _of(*kinds: Kind) -> set[Any]:
    return {target for target, op in OPS.items() if op.kind in kinds}


WEIGHTED = _of(Kind.LAYER)
PRODUCTS = _of(Kind.LAYER, Kind.PRODUCT)
SUMS = _of(Kind.SUM)
ADDITIVE = _of(Kind.ADDITIVE)
ELEMENTWISE = _of(Kind.FUNCTION)
SHAPING = _of(Kind.MOVE)
MONOTONE = _of(Kind.MAXIMUM)
CONCAT = _of(Kind.JOIN)

# What captured graphs hold besides, until a pass takes it out.
CASTS = {
    aten.to.dtype, aten.to.device, aten.to.other, aten.to.dtype_layout, aten._to_copy.default,
}  # fmt: skip
"""To another dtype or device."""
COPIES = {
    aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default,
}  # fmt: skip
"""The same values in the same places."""
REARRANGING = SHAPING | COPIES | {aten.view.default, aten.expand.default}
"""The same values in other places, some of them more than once."""


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
