"""LayerNorm as sums, products and a table for the inverse root.

LayerNorm over D features: c = x - mean x; v = Σ c² (a matrix product of c with itself, so that no
square is rounded); y = c · rsqrt(v / D + eps) · gamma + beta. D · c = D · x - Σ x is exact: the sum
stays an accumulator. The inverse root is one value a row and gets 12 bits. gamma and beta move into
the linear layers behind where only such layers read y, and are a diagonal linear layer otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import EXACT, Editor, constant_of, sample_rank
from secure_quant.quantizer.refuse import unsupported

__all__ = ["diagonal", "lower_layer_norm"]

aten = torch.ops.aten
ROW_BITS = 12


def lower_layer_norm(module: GraphModule) -> None:
    """layer_norm over the last axis. Raises UnsupportedModule for others."""
    for node in list(module.graph.nodes):
        if node.target is not aten.layer_norm.default:
            continue
        x, shape, *rest = node.args
        weight, bias, eps = (*rest, *(None, None, 1e-5)[len(rest) :])[:3]
        if len(shape) != 1:
            raise unsupported(node, f"normalization over {len(shape)} axes", "flatten them to one")
        gamma, beta = constant_of(module, weight), constant_of(module, bias)
        edit = Editor(module, node)
        made = _normalized(edit, x, shape[0], eps)
        features = shape[0]
        gamma = torch.ones(features) if gamma is None else gamma
        beta = torch.zeros(features) if beta is None else beta
        readers = _affine_readers(node, sample_rank(node) - 1)
        if readers is not None:
            _fold(module, readers, gamma, beta)
        elif not (torch.equal(gamma, torch.ones(features)) and not beta.any()):
            made = diagonal(edit, made, gamma, beta)
        edit.replace(made)


def _normalized(edit: Editor, x: Node, features: int, eps: float) -> Node:
    """(x - mean) / sqrt(variance + eps) over the last axis."""
    mean = edit.call(aten.mean.dim, x, [-1], True)
    mean.meta[EXACT] = True
    centred = edit.call(aten.sub.Tensor, x, mean)
    row = edit.call(aten.unsqueeze.default, centred, -2)
    squares = edit.call(aten.matmul.default, row, edit.call(aten.transpose.int, row, -2, -1))
    variance = edit.call(aten.mul.Tensor, squares, 1 / features)
    inverse = edit.call(
        aten.rsqrt.default, edit.call(aten.add.Tensor, variance, eps), bits=ROW_BITS
    )
    return edit.call(
        aten.mul.Tensor, centred, edit.call(aten.squeeze.dim, inverse, -1)
    )  # fmt: skip


def diagonal(edit: Editor, x: Node, gamma: Tensor, beta: Tensor | None) -> Node:
    """x · gamma + beta over the last axis, as a linear layer."""
    weight = edit.parameter(torch.diag(gamma), "diagonal")
    if beta is None or not beta.any():
        return edit.call(aten.linear.default, x, weight)
    return edit.call(aten.linear.default, x, weight, edit.parameter(beta, "shift"))


def _affine_readers(node: Node, last: int) -> list[Node] | None:
    """The linear layers that read ``node``, if nothing else does, also through means over other
    axes; None otherwise."""
    found: list[Node] = []
    for user in node.users:
        if user.target is aten.linear.default and user.args[0] is node:
            found.append(user)
        elif user.target is aten.mean.dim and _spares(user.args[1], last):
            deeper = _affine_readers(user, sample_rank(user) - 1)
            if deeper is None:
                return None
            found += deeper
        else:
            return None
    return found or None


def _spares(dims: Any, last: int) -> bool:
    axes = [dims] if isinstance(dims, int) else list(dims)
    return all(d % (last + 1) not in (0, last) for d in axes)


def _fold(module: GraphModule, readers: list[Node], gamma: Tensor, beta: Tensor) -> None:
    """y = W (gamma · n + beta) + b as one linear layer on n."""
    for reader in readers:
        weight = constant_of(module, reader.args[1])
        if weight is None:
            raise unsupported(reader, "a weight that is not a parameter")
        bias = constant_of(module, reader.args[2]) if len(reader.args) > 2 else None
        edit = Editor(module, reader)
        shift = weight @ beta if bias is None else weight @ beta + bias
        made = edit.call(
            aten.linear.default, reader.args[0], edit.parameter(weight * gamma, "weight"),
            edit.parameter(shift, "bias"),
        )  # fmt: skip
        edit.replace(made)
