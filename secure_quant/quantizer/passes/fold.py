"""Everything that does not depend on the input becomes a constant: ``w.t()``, ``w * 0.5``, weight
and spectral norm, masks and positions that are computed, zeros for so many samples.

Such nodes are run twice, for two sizes of the batch. What is equal both times is one constant; what
only has more equal rows is a constant of one row, which broadcasts over the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.errors import NotFinite
from secure_quant.quantizer.opset import ADDITIVE, ELEMENTWISE
from secure_quant.quantizer.passes.convolutions import CONVOLUTIONS
from secure_quant.quantizer.passes.edit import Editor, constant_of, has_free_batch
from secure_quant.quantizer.refuse import PLACES, module_path, unsupported

__all__ = ["constants_for", "fold_constants"]

aten = torch.ops.aten

_LAYERS = {aten.linear.default} | CONVOLUTIONS

_OF_SHAPE = {
    aten.sym_size.int, aten.sym_numel.default, aten.zeros_like.default, aten.ones_like.default,
    aten.full_like.default, aten.empty_like.default, aten.new_zeros.default, aten.new_ones.default,
    aten.new_full.default, aten.new_empty.default,
}  # fmt: skip
"""Ops that look at the shape of their input only."""
_SIZES = (1e-24, 1e15)
"""Of the largest weight of a layer."""
_EMPTY = {aten.empty_like.default, aten.new_empty.default, aten.empty.memory_format}


def fold_constants(module: GraphModule, batch: int) -> None:
    """Evaluate what does not depend on the input, in place; each layer gets parameters of its own.

    batch  samples in the example that the graph was captured with.
    Raises UnsupportedModule for random numbers and for values that depend on the size of the
    batch, NotFinite for parameters that are NaN or infinite.
    """
    nodes = list(module.graph.nodes)
    sizes = (batch, batch + 1) if has_free_batch(module) else (batch, batch)
    runs = [_Run(module, size) for size in sizes]
    for node in nodes:
        if node.op == "output" or any(run.visit(node) is False for run in runs):
            _settle(module, node, runs, sizes)
    module.graph.eliminate_dead_code()
    _untie(module)
    _check_finite(module)
    module.recompile()


def constants_for(module: GraphModule, batch: int) -> dict[Node, Any]:
    """The value of every node that does not depend on the input, for ``batch`` samples."""
    run = _Run(module, batch)
    for node in module.graph.nodes:
        run.visit(node)
    return run.values


class _Run:
    """Values of the nodes that do not depend on the input, for one size of the batch."""

    def __init__(self, module: GraphModule, batch: int) -> None:
        self._module, self._batch = module, batch
        self.values: dict[Node, Any] = {}

    def visit(self, node: Node) -> bool:
        """True if ``node`` has been evaluated, False if it depends on the input."""
        if node.op == "get_attr":
            self.values[node] = constant_of(self._module, node)
            return True
        if node.op != "call_function":
            return False
        known = all(n in self.values for n in node.all_input_nodes)
        if not known and node.target not in _OF_SHAPE:
            return False
        self.values[node] = self._call(node)
        return True

    def _call(self, node: Node) -> Any:
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise unsupported(node, "random numbers", "draw them once, and keep them in a buffer")
        args = torch.fx.map_arg(node.args, self._value)
        kwargs = torch.fx.map_arg(node.kwargs, self._value)
        with torch.no_grad():
            try:
                made = target(*args, **kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                raise unsupported(node, f"a constant that cannot be computed: {reason}") from error
        if target in _EMPTY and made.dtype.is_floating_point:
            made.fill_(float("nan"))  # what nobody writes is nothing; it must not reach a result
        return made

    def _value(self, node: Node) -> Any:
        if node in self.values:
            return self.values[node]
        shape = [self._size(n) for n in node.meta["val"].shape]
        return torch.zeros(shape, dtype=node.meta["val"].dtype)

    def _size(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, self._batch)))


def _settle(module: GraphModule, node: Node, runs: list[_Run], sizes: tuple[int, int]) -> None:
    """Give ``node``, which depends on the input, the constants it reads as attributes."""
    for source in node.all_input_nodes:
        if source not in runs[0].values or source.op == "get_attr":
            continue
        first, second = (run.values[source] for run in runs)
        if isinstance(first, Tensor):
            value = _one_value(first, second, sizes)
            if value is None and node.target is aten.index_put.default:
                raise unsupported(
                    node, "a write at places that depend on values",
                    "leave a mask of samples out, and give inputs of one length; or decide at the "
                    "client what is written where, and give that as an input",
                )  # fmt: skip
            if value is None and node.target in (aten.index.Tensor, aten.gather.default):
                raise unsupported(node, "places that depend on the input", PLACES)
            if value is None:
                raise unsupported(node, "a constant that depends on the size of the batch")
            node.replace_input_with(source, Editor(module, node).constant(value))
        elif isinstance(first, int | float) and first == second and sizes[0] != sizes[1]:
            _replace_by_number(node, source, first)
        elif node.target in ADDITIVE | ELEMENTWISE and isinstance(first, int | float):
            raise unsupported(
                node, "a number that depends on the size of the batch", "use a mean over the sample"
            )


def _one_value(first: Tensor, second: Tensor, sizes: tuple[int, int]) -> Tensor | None:
    """The constant that both runs show, of one row where it has a row for each sample."""
    if first.shape == second.shape and torch.equal(_bits(first), _bits(second)):
        if sizes[0] != sizes[1] or not _rows(first, sizes[0]):
            return first
        return first[:1]
    if first.shape[1:] != second.shape[1:] or not _rows(first, sizes[0]):
        return None
    same = _rows(second, sizes[1]) and torch.equal(_bits(first[:1]), _bits(second[:1]))
    return first[:1] if same else None


def _rows(value: Tensor, count: int) -> bool:
    """True for ``count`` equal rows."""
    rows = _bits(value)
    return value.ndim > 0 and len(value) == count and bool((rows == rows[:1]).all())


def _bits(value: Tensor) -> Tensor:
    """Something that compares equal where ``value`` has NaN too."""
    return torch.nan_to_num(value, nan=-1.2345e30) if value.dtype.is_floating_point else value


def _replace_by_number(node: Node, source: Node, number: Any) -> None:
    swap = {source: number}
    node.args = torch.fx.map_arg(node.args, lambda n: swap.get(n, n))
    node.kwargs = torch.fx.map_arg(node.kwargs, lambda n: swap.get(n, n))


def _untie(module: GraphModule) -> None:
    """A parameter that several layers read becomes one for each: each rounds it for itself."""
    seen: set[str] = set()
    for node in list(module.graph.nodes):
        if node.target not in _LAYERS:
            continue
        for place in (1, 2):
            source = node.args[place] if len(node.args) > place else None
            if not isinstance(source, Node) or source.op != "get_attr":
                continue
            value = constant_of(module, source)
            shared = str(source.target) in seen or len(source.users) > 1
            seen.add(str(source.target))
            if shared and value is not None:
                node.update_arg(place, Editor(module, node).constant(value))
    module.graph.eliminate_dead_code()


def _check_size(node: Node, value: Tensor) -> None:
    """Raise UnsupportedModule for a layer's weights that no scale of a graph can express."""
    low, high = _SIZES
    largest = float(value.abs().max()) if value.numel() else 0.0
    for user in node.users:
        layer = user.target in _LAYERS and user.args[1] is node
        if layer and largest and not low <= largest <= high:
            raise unsupported(
                user, f"weights of up to {largest:.3g}",
                f"rescale that layer and its neighbours: scales go from {low:g} to {high:g}",
            )  # fmt: skip


def _check_finite(module: GraphModule) -> None:
    """Raise NotFinite for NaN or infinity in the parameters of layers."""
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        value = constant_of(module, node)
        if value is None or not value.dtype.is_floating_point:
            continue
        if bool(torch.isfinite(value).all()):
            _check_size(node, value)
            continue
        for user in node.users:
            if user.target in _LAYERS or "norm" in str(user.target):
                name = str(user.target).removeprefix("aten.").split(".")[0]
                raise NotFinite(
                    f"{node.target} of {name} in {module_path(user) or 'the model itself'}",
                    got="NaN or infinity", expected="finite numbers",
                    hint="training has diverged, or a norm divides by zero: look at this tensor",
                )  # fmt: skip
