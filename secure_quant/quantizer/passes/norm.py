"""LayerNorm and RMSNorm as sums, products and a table for the inverse root.

LayerNorm over D features: c = x - mean x; v = Σ c²; y = c · rsqrt(v / D + eps) · gamma + beta. Only
y and what is one value a row is rounded: D · v = D · Σ x² - (Σ x)² is made of matrix products and
sums, while the mean is rounded to 12 bits, and c = x - mean is a sum that the last product reads. x
stays an accumulator as well where it is a sum that nothing else reads; the squares then have
factors of their own, for which there is room. One feature of a language model is often a hundred
times the others, so an x that is rounded gets 12 bits, and so does the inverse root. gamma and beta
move into the linear layers behind where only such layers read y, and are a diagonal linear layer
otherwise.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.ir.values import WIDE
from secure_quant.quantizer.opset import CHANNELS, SHAPING, find_roots
from secure_quant.quantizer.passes.edit import (  # fmt: skip
    BITS,
    CENTRING,
    EXACT,
    LARGEST,
    NORMALIZED,
    POSITIVE,
    SQUARES,
    Editor,
    bias_of,
    constant_of,
    is_lone_linear,
    sample_rank,
)
from secure_quant.quantizer.refuse import unsupported

__all__ = [
    "affine_readers",
    "diagonal",
    "fold",
    "keep_squares_small",
    "keep_sums_exact",
    "lower_layer_norm",
    "lower_mean_square",
]

aten = torch.ops.aten
FINE_BITS = 12
WIDEST_EXACT = 1024
"""Features up to which factors that bring two summands to one scale fit beside the sum of all."""

_SQUARES = {aten.square.default, aten.pow.Tensor_Scalar, aten.mul.Tensor}
_ROOTS = {aten.rsqrt.default, aten.sqrt.default, aten.reciprocal.default, aten.add.Tensor,
          aten.mul.Tensor, aten.clamp.default, aten.clamp_min.default}  # fmt: skip


def lower_layer_norm(module: GraphModule) -> None:
    """layer_norm and rms_norm over the last axis. Raises UnsupportedModule for others."""
    for node in list(module.graph.nodes):
        if node.target is aten.layer_norm.default:
            x, shape, *rest = node.args
            weight, bias, eps = (*rest, *(None, None, 1e-5)[len(rest) :])[:3]
        elif node.target is aten.rms_norm.default:
            x, shape, *rest = node.args
            weight, eps = (*rest, *(None, None)[len(rest) :])[:2]
            bias, eps = None, torch.finfo(x.meta["val"].dtype).eps if eps is None else eps
        else:
            continue
        if len(shape) != 1:
            raise unsupported(node, f"normalization over {len(shape)} axes", "flatten them to one")
        gamma, beta = constant_of(module, weight), constant_of(module, bias)
        edit = Editor(module, node)
        made = _normalized(edit, x, eps, centre=node.target is aten.layer_norm.default)
        features = shape[0]
        gamma = torch.ones(features) if gamma is None else gamma
        beta = torch.zeros(features) if beta is None else beta
        if not (torch.equal(gamma, torch.ones(features)) and not beta.any()):
            made = _scaled_and_shifted(module, node, made, gamma, beta)
        edit.replace(made)


def _normalized(edit: Editor, x: Node, eps: float, *, centre: bool) -> Node:
    """(x - mean) / sqrt(variance + eps) over the last axis; without ``centre`` the mean is 0."""
    if centre:
        _make_fine(x, _largest_squared(x))
        mean = edit.call(aten.mean.dim, x, [-1], True, exact=True, centring=True)
        apart = edit.call(aten.sub.Tensor, x, mean, exact=True, centring=True)
        square = _mean_square(edit, apart, squares=True)
        mean = edit.call(aten.mean.dim, x, [-1], True, bits=FINE_BITS, centring=True)
        x = edit.call(aten.sub.Tensor, x, mean, exact=True, centring=True)
    else:
        square = mean_square(edit, x)
    inverse = edit.call(aten.rsqrt.default, edit.call(aten.add.Tensor, square, eps),
                        bits=FINE_BITS, positive=True)  # fmt: skip
    factor = edit.call(aten.squeeze.dim, inverse, -1)
    return edit.call(aten.mul.Tensor, x, factor, normalized=True)


def _scaled_and_shifted(
    module: GraphModule, node: Node, made: Node, gamma: Tensor, beta: Tensor
) -> Node:
    """gamma and beta where each reader of ``node`` can take them: the weights of linear layers; a
    sum with a branch, which takes beta as its bias. What other readers read."""
    edit = Editor(module, node)
    last, others = sample_rank(node) - 1, False
    for user in list(node.users):
        readers = affine_readers(user, node, last)
        if readers is not None:
            user.replace_input_with(node, made)
            fold(module, readers, gamma, beta)
        elif _takes_channels(module, user, node, beta):
            scaled = edit.call(
                aten.mul.Tensor,
                made,
                edit.fixed(gamma, "gamma"),
                channels=True,
                exact=True,
            )
            branch: Any = next(n for n in user.args[:2] if n is not node)
            user.replace_input_with(node, scaled)
            if beta.any():
                _add_bias(module, branch, beta)
        else:
            others = True
    return diagonal(edit, made, gamma, beta) if others else made


def _takes_channels(module: GraphModule, user: Node, node: Node, beta: Tensor) -> bool:
    """True for a sum of ``node`` and another value of its shape, where beta has a place."""
    if user.target is not aten.add.Tensor or user.kwargs or len(user.args) > 2:
        return False
    branch = [n for n in user.args if n is not node]
    if len(branch) != 1 or not isinstance(branch[0], Node) or branch[0].op == "get_attr":
        return False
    same = branch[0].meta["val"].shape == node.meta["val"].shape
    return same and (not beta.any() or is_lone_linear(module, branch[0]))


def _add_bias(module: GraphModule, layer: Node, shift: Tensor) -> None:
    """``layer``, linear, makes W x + b + shift."""
    bias = bias_of(module, layer)
    made = Editor(module, layer).parameter(shift if bias is None else bias + shift, "bias")
    layer.args = (*layer.args[:2], made)


def mean_square(edit: Editor, x: Node) -> Node:
    """Σ x² / D over the last axis, [..., 1, 1], as a matrix product: no square is rounded."""
    features = int(x.meta["val"].shape[-1])
    _make_fine(x, math.isqrt(WIDE.hi // (2 * features)))
    return _mean_square(edit, x)


def _mean_square(edit: Editor, x: Node, **meta: Any) -> Node:
    row = edit.call(aten.unsqueeze.default, x, -2)
    turned = edit.call(aten.transpose.int, row, -2, -1)
    squares = edit.call(aten.matmul.default, row, turned, **meta)
    return edit.call(aten.mul.Tensor, squares, 1 / int(x.meta["val"].shape[-1]))


def _largest_squared(x: Node) -> int:
    """Largest |x̂| of D features for which D · Σ x̂² - (Σ x̂)² has room, bounds rounded up."""
    return math.isqrt(WIDE.hi // 4) // int(x.meta["val"].shape[-1])


def keep_squares_small(module: GraphModule) -> None:
    """A sum that stays an accumulator is made once more for its squares, with factors so small that
    these have room: the large features count there, and their least part does not."""
    for node in list(module.graph.nodes):
        if not node.meta.get(SQUARES):
            continue
        apart: Any = node.args[0].args[0]
        x, mean = apart.args[:2]
        if x.meta.get(EXACT):
            with module.graph.inserting_after(x):
                own = module.graph.node_copy(x)
            own.meta[LARGEST] = _largest_squared(x)
            x.meta.pop(LARGEST, None)
            for reader in (apart, mean):
                reader.replace_input_with(x, own)


def _make_fine(x: Node, largest: int = 0) -> None:
    """12 bits for the activation behind ``x``, of which no |x̂| is above ``largest``."""
    while x.target in SHAPING and isinstance(x.args[0], Node):
        x = x.args[0]
    if x.op == "call_function":
        x.meta[BITS] = FINE_BITS
        if largest:
            x.meta[LARGEST] = largest


def lower_mean_square(module: GraphModule) -> None:
    """mean(x², -1, keepdim) of an RMSNorm that is written out, as a matrix product; the functions
    of it, one value a row, get 12 bits."""
    for node in list(module.graph.nodes):
        if node.target is not aten.mean.dim or node.args[2:] != (True,):
            continue
        square, dims = node.args[0], node.args[1]
        x = _squared(square)
        if x is None or len(square.users) > 1 or [d % sample_rank(x) for d in dims] != [
            sample_rank(x) - 1
        ]:  # fmt: skip
            continue
        edit = Editor(module, node)
        made = edit.call(aten.squeeze.dim, mean_square(edit, x), -1)
        edit.replace(made)
        _refine(made)


def _squared(node: Node) -> Node | None:
    """x of x², None for anything else."""
    if node.target not in _SQUARES or not isinstance(node.args[0], Node):
        return None
    x, *rest = cast("tuple[Node, ...]", node.args)
    same = node.target is aten.square.default or rest[:1] in ([2], [2.0], [x])
    return x if same and not node.kwargs else None


def _refine(node: Node) -> None:
    """12 bits, and a range without 0 for an inverse, for what is computed of one value a row."""
    for user in node.users:
        constants = all(not isinstance(a, Node) for a in user.args[1:])
        if user.target in _ROOTS and constants:
            user.meta[BITS] = FINE_BITS
            inverse = user.target in (aten.rsqrt.default, aten.reciprocal.default)
            user.meta[POSITIVE] = inverse
            _refine(user)


def keep_sums_exact(module: GraphModule) -> None:
    """A sum of two activations that nothing but a LayerNorm reads stays an accumulator."""
    roots = find_roots(list(module.graph.nodes))
    for node in module.graph.nodes:
        if node.target is not aten.sub.Tensor or not isinstance(node.args[1], Node):
            continue
        x, mean = node.args[:2]
        if not isinstance(x, Node) or mean.target is not aten.mean.dim:
            continue
        alone = all(user.meta.get(CENTRING) for user in x.users)
        summed = x.target in (aten.add.Tensor, aten.sub.Tensor) and roots.get(x) is x
        narrow = int(x.meta["val"].shape[-1]) <= WIDEST_EXACT and all(
            is_lone_linear(module, n) or (isinstance(n, Node) and _is_narrow(n)) for n in x.args[:2]
        )  # int8 both, so that D times their sum has room
        x.meta[EXACT] = bool(alone and mean.meta.get(CENTRING) and summed and narrow)


def _is_narrow(node: Node) -> bool:
    """An int8 that is no layer's."""
    normalized = node.meta.get(NORMALIZED) and node.meta.get(BITS, 8) == 8
    return bool(node.op == "placeholder" or node.meta.get(CHANNELS) or normalized)


def diagonal(edit: Editor, x: Node, gamma: Tensor, beta: Tensor | None) -> Node:
    """x · gamma + beta over the last axis, as a linear layer."""
    weight = edit.parameter(torch.diag(gamma), "diagonal")
    if beta is None or not beta.any():
        return edit.call(aten.linear.default, x, weight)
    return edit.call(aten.linear.default, x, weight, edit.parameter(beta, "shift"))


def affine_readers(user: Node, node: Node, last: int) -> list[Node] | None:
    """The linear layers by which ``user`` reads ``node``: itself, or all behind a mean over other
    axes; None if there is another way."""
    if user.target is aten.linear.default and user.args[0] is node:
        return [user]
    if user.target is not aten.mean.dim or not _spares(user.args[1], last):
        return None
    found: list[Node] = []
    for reader in user.users:
        deeper = affine_readers(reader, user, sample_rank(user) - 1)
        if deeper is None:
            return None
        found += deeper
    return found or None


def _spares(dims: Any, last: int) -> bool:
    axes = [dims] if isinstance(dims, int) else list(dims)
    return all(d % (last + 1) not in (0, last) for d in axes)


def fold(module: GraphModule, readers: list[Node], gamma: Tensor, beta: Tensor) -> None:
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
