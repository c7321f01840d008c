"""A quantized model -> the integer graph, with its own scales and zero points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from secure_quant.errors import CaptureMismatch
from secure_quant.ir import Graph
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.gate import Bounds, Gate, check_accuracy, largest_steps
from secure_quant.quantizer.gate.floatgraph import captured_batch, in_batches
from secure_quant.quantizer.kept.grid import ON_GRID
from secure_quant.quantizer.lower.record import lower_recorded
from secure_quant.quantizer.opset import CONCAT, MONOTONE, SHAPING
from secure_quant.quantizer.passes import rewrite
from secure_quant.quantizer.passes.constants import lower_constants
from secure_quant.quantizer.refuse import failures_named, unsupported

__all__ = ["as_pairs", "kept_graph"]

_decomposed: Any = torch.ops.quantized_decomposed
_QUANTIZE = _decomposed.quantize_per_tensor.default
_DEQUANTIZE = _decomposed.dequantize_per_tensor.default
_CLAMPS = {torch.ops.aten.relu.default, torch.ops.aten.relu6.default,
           torch.ops.aten.hardtanh.default}  # fmt: skip
"""Rounding before them makes no difference to what is rounded behind them."""
_INT8 = (-128, 127)
_ALIKE = 1e-3

Grid = tuple[float, int, int, int]


def kept_graph(
    model: nn.Module, batches: Sequence[Tensor], scales: Tensor, bounds: Bounds,
    progress: Callable[[str, int, int], None],
) -> Graph:  # fmt: skip
    """The graph of a module with ``on_grid`` ops; ``scales``: of its weights.

    Raises UnsupportedModule for what is rounded nowhere, CaptureMismatch where an integer is more
    than a step from what torch makes of the same integers, AccuracyLoss, OverflowRisk.
    """
    gate, name = Gate(model, batches), type(model).__name__
    example = torch.cat([batches[0][:1]] * 2)
    progress("capture", 0, 1)
    with failures_named(f"capturing {name}"):
        module = rewrite(capture(model, example))
    gate.check(module)
    with failures_named(f"rewriting {name}"):
        lower_constants(module)
        _round_before_moves(module)
        as_pairs(module)
        module.graph.eliminate_dead_code()
        module.recompile()
    progress("convert", 0, 1)
    with failures_named(f"lowering {name}"):
        recorded = lower_recorded(module, example, kept=scales)
    x = gate.samples
    found = largest_steps(
        recorded.graph, module, recorded.places, x.numpy(), jumps=False
    )  # fmt: skip
    outputs = {port.node for port in recorded.graph.output_ports}
    for place, steps in found.items():
        if not steps <= (2 if place in outputs else 1) + _ALIKE:
            raise CaptureMismatch(
                f"{place!r} of the quantized model", got=f"{steps:.3g} steps from torch's",
                expected="at most 1",
            )  # fmt: skip
    with torch.no_grad():
        want = in_batches(_lone(module), x.clone(), captured_batch(module)).numpy()
    check_accuracy(recorded.graph, x.numpy(), want, dict, bounds)
    return recorded.graph


def _lone(module: GraphModule) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        made: Any = module(x)
        while isinstance(made, tuple | list):
            (made,) = made
        return made  # type: ignore[no-any-return]

    return run


def _grid(node: Node) -> Grid:
    """scale, zero point and ends of an ``on_grid`` node, as int8. Raises UnsupportedModule."""
    scale, zero_point, low, high = node.args[1:5]
    shift = 128 if int(low) >= 0 else 0  # type: ignore[arg-type]
    made = (float(scale), int(zero_point) - shift, int(low) - shift, int(high) - shift)  # type: ignore[arg-type]
    if made[2] < _INT8[0] or made[3] > _INT8[1] or not _INT8[0] <= made[1] <= _INT8[1]:
        raise unsupported(node, f"a grid from {low} to {high}, zero point {zero_point}",
                          "activations in int8 or uint8")  # fmt: skip
    return made


def _round_before_moves(module: GraphModule) -> None:
    """What is moved, joined or compared is put on the grid that the result is rounded to, before:
    rounding keeps order, so the result is the same."""
    for node in reversed(list(module.graph.nodes)):
        if node.target not in CONCAT | SHAPING | MONOTONE:
            continue
        listed: Any = node.args[0]
        parts = listed if node.target in CONCAT else [listed]
        grid = _grid_below(node)
        if grid is None or (node.target not in CONCAT and _is_rounded(parts[0])):
            continue
        with module.graph.inserting_before(node):
            made = [module.graph.call_function(ON_GRID, (part, *grid)) for part in parts]
        for new, part in zip(made, parts, strict=True):
            new.meta = dict(part.meta)
        node.update_arg(0, made if node.target in CONCAT else made[0])


def _is_rounded(node: Node) -> bool:
    while node.target in SHAPING | MONOTONE and isinstance(node.args[0], Node):
        node = node.args[0]
    return node.target is ON_GRID or node.target in CONCAT


def _grid_below(node: Node) -> tuple[Any, ...] | None:
    while len(node.users) == 1:
        (node,) = node.users
        if node.target is ON_GRID:
            return tuple(node.args[1:5])
        if node.target not in CONCAT | SHAPING | MONOTONE | _CLAMPS:
            return None
    return None


def as_pairs(module: GraphModule) -> None:
    """Each ``on_grid`` becomes quantize and dequantize."""
    for node in list(module.graph.nodes):
        if node.target is not ON_GRID:
            continue
        scale, zero_point, low, high = _grid(node)
        args = (scale, zero_point, low, high, torch.int8)
        with module.graph.inserting_before(node):
            q = module.graph.call_function(_QUANTIZE, (node.args[0], *args))
            real = module.graph.call_function(_DEQUANTIZE, (q, *args))
        q.meta, real.meta = dict(node.meta), dict(node.meta)
        node.replace_all_uses_with(real)
        module.graph.erase_node(node)
