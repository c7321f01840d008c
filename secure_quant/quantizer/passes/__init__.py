"""Rewrites of the captured float graph into ops that have integer meanings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import GraphModule

from secure_quant.quantizer.passes.attention import lower_attention, lower_softmax
from secure_quant.quantizer.passes.axes import lower_axis_maps
from secure_quant.quantizer.passes.choices import lower_choices
from secure_quant.quantizer.passes.constants import lower_constants
from secure_quant.quantizer.passes.convolutions import lower_convolutions
from secure_quant.quantizer.passes.equalize import equalize
from secure_quant.quantizer.passes.joins import keep_joins_fine
from secure_quant.quantizer.passes.lengths import raise_floors
from secure_quant.quantizer.passes.masked_maxima import lower_masked_maxima
from secure_quant.quantizer.passes.moved import lower_moves
from secure_quant.quantizer.passes.norm import (
    keep_squares_small,
    keep_sums_exact,
    lower_layer_norm,
    lower_mean_square,
)
from secure_quant.quantizer.passes.order import activation_before_pool
from secure_quant.quantizer.passes.pools import lower_pools
from secure_quant.quantizer.passes.spread import spread_features
from secure_quant.quantizer.passes.writes import lower_writes

__all__ = ["rewrite", "specialize"]


def rewrite(module: GraphModule) -> GraphModule:
    """Composite ops in simpler ones, in place: in real numbers the same for any input."""
    lower_moves(module)
    lower_convolutions(module)
    lower_axis_maps(module)
    lower_pools(module)
    lower_choices(module)
    lower_writes(module)
    lower_masked_maxima(module)
    lower_attention(module)
    lower_layer_norm(module)
    lower_mean_square(module)
    return _cleaned(module)


def specialize(
    module: GraphModule, batches: Sequence[Tensor], bits: int = 8, *, spread: bool = True
) -> GraphModule:
    """What is left, in place, in an order in which each step finds what it needs. ``batches`` show
    which values occur; what is as small beside them as float32's rounding may go. ``bits`` of
    activations. ``spread``: large hidden features enter the next layer in parts."""
    raise_floors(module, batches)
    lower_softmax(module, batches, steps=bits == 8)
    module.graph.eliminate_dead_code()
    lower_constants(module)
    activation_before_pool(module)
    if bits == 8:
        keep_sums_exact(module)
        keep_joins_fine(module)
    equalize(_cleaned(module), batches, exact=bits == 8)
    keep_squares_small(module)
    if bits == 8 and spread:
        spread_features(_cleaned(module), batches)
    return _cleaned(module)


def _cleaned(module: GraphModule) -> GraphModule:
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module
