"""Rewrites of the captured float graph into ops that have integer meanings."""

from __future__ import annotations

from torch.fx import GraphModule

from secure_quant.quantizer.passes.attention import lower_attention, lower_softmax
from secure_quant.quantizer.passes.constants import lower_constants
from secure_quant.quantizer.passes.norm import lower_layer_norm
from secure_quant.quantizer.passes.order import activation_before_pool
from secure_quant.quantizer.passes.pools import lower_pools
from secure_quant.quantizer.passes.writes import lower_writes

__all__ = ["rewrite"]


def rewrite(module: GraphModule) -> GraphModule:
    """All rewrites, in place, in an order in which each finds what it needs."""
    lower_pools(module)
    lower_writes(module)
    lower_attention(module)
    lower_softmax(module)
    lower_layer_norm(module)
    lower_constants(module)
    activation_before_pool(module)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module
