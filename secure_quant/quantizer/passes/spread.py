"""Hidden features that are far larger than the others, as several copies of a part each.

Between two linear layers, behind a function such as GELU, a few features are five times as large as
all others, and one scale leaves those few steps. A scale of its own would make the second layer's
columns of a large feature large, and its int8 weights coarse. So such a feature is divided by n and
enters the second layer n times, with the weights that it had (Zhao et al., Outlier Channel
Splitting, 2019): f(y) = n · (f(y) / n). The division is in the table behind the first layer; the
copies are the same integers side by side.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.opset import find_roots
from secure_quant.quantizer.passes.edit import Editor, bias_of, constant_of, sample_rank
from secure_quant.quantizer.passes.equalize import Sizes

__all__ = ["spread_features"]

aten = torch.ops.aten
MORE = 8
"""One column in so many may be a copy."""
MOST_COPIES = 32
LEAST_GAIN = 2.25
"""Of the scale, below which features stay as they are: more layers cost homomorphic encryption
ciphertexts, and a bit more is hardly felt where nothing amplifies it."""


@dataclass(frozen=True)
class _Hidden:
    """The features between two layers: ``layer`` makes them, ``functions`` change them, in order,
    and ``readers`` are linear layers that read the last of those."""

    layer: Node
    functions: tuple[Node, ...]
    readers: tuple[Node, ...]

    @property
    def last(self) -> Node:
        return self.functions[-1]


def spread_features(module: GraphModule, batches: Sequence[Tensor]) -> None:
    """Divide hidden features that ``batches`` show to be far larger than the others. In place; the
    module computes the same."""
    nodes = list(module.graph.nodes)
    roots = find_roots(nodes)
    found = [h for node in nodes if (h := _hidden(module, node, nodes, roots)) is not None]
    if not found:
        return
    sizes = Sizes(module, {hidden.last for hidden in found}).over(batches)
    replaced: dict[Node, Node] = {}
    for hidden in found:
        groups = _groups(sizes[hidden.last])
        if len(groups) > 1:
            layer = replaced.get(hidden.layer, hidden.layer)
            replaced |= _divide(module, replace(hidden, layer=layer), groups)


def _hidden(
    module: GraphModule, node: Node, nodes: Sequence[Node], roots: Mapping[Node, Node]
) -> _Hidden | None:
    """The features that ``node`` makes, if it is a linear layer before functions of each feature
    alone and nothing but linear layers behind them; else None."""
    if node.target is not aten.linear.default or not _constant(module, node):
        return None
    functions = tuple(n for n in nodes if n is not node and roots.get(n) is node)
    ends = [n for n in functions if any(roots.get(user) is not node for user in n.users)]
    outside = any(user not in functions for user in node.users)
    if len(ends) != 1 or ends[0] is not functions[-1] or outside:
        return None
    for function in functions:
        others = [constant_of(module, n) for n in function.all_input_nodes if n not in roots]
        if any(value is None or value.numel() != 1 for value in others):
            return None
    readers = tuple(ends[0].users)
    plain = all(
        r.target is aten.linear.default and r.args[0] is ends[0] and _constant(module, r)
        for r in readers
    )
    return _Hidden(node, functions, readers) if plain else None


def _constant(module: GraphModule, layer: Node) -> bool:
    """Whether all parameters of a linear layer are constants."""
    parameters = [n for n in layer.args[1:] if n is not None]
    return all(constant_of(module, n) is not None for n in parameters)


def _groups(size: Tensor) -> dict[int, Tensor]:
    """Number of copies, a power of two -> the features, int64[...], that get so many: the least
    scale for which there are not too many copies. One group, of 1, where that gains little."""
    room = len(size) // MORE
    largest = float(size.max())
    parts = (size[:, None] / 2 ** torch.arange(5)).flatten().tolist()
    levels = sorted({level for level in parts if largest / MOST_COPIES <= level <= largest})
    # The copies grow fewer with the scale.
    first = bisect_left(levels, -room, key=lambda most: -int((_copies(size, most) - 1).sum()))
    if largest < LEAST_GAIN * levels[first]:
        return {1: torch.arange(len(size))}
    copies = _copies(size, levels[first])
    return {n: (copies == n).nonzero()[:, 0] for n in sorted(set(copies.tolist()))}


def _copies(size: Tensor, most: float) -> Tensor:
    """int64: the least power of two by which a feature is at most ``most``."""
    needed = (size / most * (1 - 1e-6)).clamp(min=1).log2().ceil()
    made: Tensor = (2**needed).long()
    return made


def _divide(module: GraphModule, hidden: _Hidden, groups: Mapping[int, Tensor]) -> dict[Node, Node]:
    """Readers, which may be the layers of features further on -> what has taken their place."""
    weight, bias = _parameters(module, hidden.layer)
    parts: list[Node] = []
    for copies, chosen in groups.items():
        edit = Editor(module, hidden.layer)
        layer = [edit.parameter(weight[chosen], "weight")]
        if bias is not None:
            layer.append(edit.parameter(bias[chosen], "bias"))
        made = {hidden.layer: edit.call(aten.linear.default, hidden.layer.args[0], *layer)}
        for function in hidden.functions:
            made[function] = Editor(module, function).copy(made)
        part = made[hidden.last]
        if copies > 1:
            part = Editor(module, hidden.last).call(aten.mul.Tensor, part, 1 / copies)
        parts += [part] * copies
    axis = sample_rank(hidden.last) - 1
    joined = Editor(module, hidden.last).call(aten.cat.default, parts, axis)
    order = torch.cat([chosen.repeat(copies) for copies, chosen in groups.items()])
    readers: dict[Node, Node] = {}
    for reader in hidden.readers:
        weight, bias = _parameters(module, reader)
        edit = Editor(module, reader)
        layer = [edit.parameter(weight[:, order], "weight")]
        if bias is not None:
            layer.append(edit.parameter(bias, "bias"))
        readers[reader] = edit.call(aten.linear.default, joined, *layer)
        edit.replace(readers[reader])
    return readers


def _parameters(module: GraphModule, layer: Node) -> tuple[Tensor, Tensor | None]:
    weight: Any = constant_of(module, layer.args[1])
    return weight, bias_of(module, layer)
