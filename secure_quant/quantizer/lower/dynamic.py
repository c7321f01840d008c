"""Where run-time scales are enough: values that only layers read."""

from __future__ import annotations

from torch.fx import Node

from secure_quant.quantizer.opset import SHAPING, WEIGHTED, aten

__all__ = ["feeds_only_layers"]

_KEEPING = SHAPING | {aten.max_pool2d.default}
"""Ops that keep a sample's scale."""


def feeds_only_layers(node: Node) -> bool:
    """True if all that is done with a value, moved or pooled, is to enter layers with weights."""
    readers = list(node.users)
    return bool(readers) and all(
        feeds_only_layers(user)
        if user.target in _KEEPING or "quantize_per_tensor" in str(user.target)
        else user.target in WEIGHTED and user.args[0] is node
        for user in readers
    )
