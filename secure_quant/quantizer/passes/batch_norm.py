"""BatchNorm as what it is in eval mode: a factor and a shift for each channel, in the layer before
it where that is right, else in a layer of its own.

This runs before torchao sees the graph: its own folding does not look at who else reads the layer,
at shared weights, or at which axis the channels are.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.errors import NotFinite
from secure_quant.quantizer.passes.affine import channel_affine
from secure_quant.quantizer.passes.edit import Editor, constant_of, sample_rank
from secure_quant.quantizer.refuse import module_path, unsupported

__all__ = ["lower_batch_norm"]

aten = torch.ops.aten

_NORMS = {aten.batch_norm.default, aten.instance_norm.default}
"""(x, gamma, beta, mean, variance, training, momentum, eps, ...)"""
_DECOMPOSED = {aten._native_batch_norm_legit_no_training.default}
"""(x, gamma, beta, mean, variance, momentum, eps); the first of three results counts."""
_OF_THE_BATCH = {
    aten._native_batch_norm_legit.default, aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_functional.default, aten.native_batch_norm.default,
}  # fmt: skip


def lower_batch_norm(module: GraphModule) -> None:
    """Every BatchNorm with running statistics, in place. Raises UnsupportedModule for those that
    take the statistics of the batch, NotFinite for statistics that are no numbers."""
    for node in list(module.graph.nodes):
        if node.target in _OF_THE_BATCH or (node.target in _NORMS and node.args[5]):
            raise _of_the_batch(node)
        if node.target not in _NORMS | _DECOMPOSED:
            continue
        x: Any = node.args[0]
        edit = Editor(module, node)
        scale, shift = _factors(module, node)
        if sample_rank(x) < 2:
            raise unsupported(node, "a value without a batch axis", "batch first")
        made = channel_affine(module, edit, x, scale, shift)
        if node.target in _NORMS:
            edit.replace(made)
            continue
        for user in list(node.users):
            if user.target is not operator.getitem or user.args[1] != 0:
                raise unsupported(node, "the statistics of a BatchNorm as values")
            user.replace_all_uses_with(made)
            module.graph.erase_node(user)
        module.graph.erase_node(node)


def _factors(module: GraphModule, node: Node) -> tuple[Tensor, Tensor]:
    """(scale, shift) of each channel."""
    given: Any = node.args[1:5]
    gamma, beta, mean, variance = (constant_of(module, n) for n in given)
    pairs = zip(given, (gamma, beta, mean, variance), strict=True)
    if any(n is not None and value is None for n, value in pairs):
        raise unsupported(node, "parameters that depend on the input", "use constants")
    if mean is None or variance is None:
        raise _of_the_batch(node)
    eps: Any = node.args[6 if node.target in _DECOMPOSED else 7]
    scale = torch.rsqrt(variance.double() + float(eps))
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise NotFinite(
            f"BatchNorm at {module_path(node) or 'the model itself'}",
            got="statistics or parameters that give NaN or infinity",
            hint="running_var must not be negative; look at the data it was trained on",
        )  # fmt: skip
    return scale.float(), shift.float()


def _of_the_batch(node: Node) -> Exception:
    return unsupported(
        node, "normalization by the statistics of the batch, not of training",
        "train it with track_running_stats=True, and call it with training=False",
    )  # fmt: skip
