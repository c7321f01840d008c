"""Rewrites of the captured float graph into ops that have integer meanings."""

from __future__ import annotations

from torch.fx import GraphModule

from secure_quant.quantizer.passes.attention import lower_attention, lower_softmax
from secure_quant.quantizer.passes.constants import lower_constants
from secure_quant.quantizer.passes.norm import lower_batch_norm, lower_layer_norm
from secure_quant.quantizer.passes.order import activation_before_pool

__all__ = ["rewrite"]


def rewrite(module: GraphModule) -> GraphModule:
    """All rewrites, in place, in an order in which each finds what it needs."""
    lower_attention(module)
    lower_softmax(module)
    lower_batch_norm(module)
    lower_layer_norm(module)
    lower_constants(module)
    activation_before_pool(module)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module
