"""torch.export of a module into a flat aten graph, cleaned of what inference does not need."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from secure_quant.errors import CalibrationError, UnsupportedModule
from secure_quant.quantizer.explicit import make_explicit

__all__ = ["capture", "module_path"]

aten = torch.ops.aten

_NOTHING = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
}
"""Ops that pass their first argument on, at inference."""

_CASTS = {aten.to.dtype, aten.to.device, aten.to.other, aten._to_copy.default, aten.to.dtype_layout}


def capture(model: nn.Module, example: Tensor) -> GraphModule:
    """The inference graph of ``model`` for inputs float32[batch, ...] like ``example``.

    The batch axis is dynamic where the model allows it. Raises UnsupportedModule, with the
    exporter's reason, if the model cannot be captured as one graph.
    """
    module = make_explicit(copy.deepcopy(model).eval())
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    except UnsupportedModule:
        raise
    except Exception:  # noqa: BLE001  the exporter raises many kinds; the second try tells
        program = _export_fixed(module, example)
    graph_module = program.module(check_guards=False)
    make_functional(graph_module)
    drop_nothings(graph_module)
    return graph_module


def _export_fixed(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, (example,))
    except UnsupportedModule:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UnsupportedModule(
            f"{type(module).__name__} cannot be captured by torch.export",
            got=reason[0][:300] if reason else type(error).__name__,
            expected="one tensor in, one tensor out, no branch that depends on values",
        ) from error


def module_path(node: Node) -> str:
    """Dotted path of the module that made an fx node, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for name, _ in stack.values():
        if isinstance(name, str) and not name.startswith("_empty"):
            path = name
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def make_functional(module: GraphModule) -> None:
    """Replace ``relu_`` and its like by the functional op; later readers see the new value."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.split("::")[1]
        if not name.endswith("_") or name.endswith("__"):
            continue
        packet = getattr(aten, name[:-1], None)
        overload = getattr(packet, node.target._overloadname, None) if packet else None
        if overload is None:
            continue
        changed = node.args[0]
        node.target = overload
        late = node
        while late.next.op != "root":
            late = late.next
            if changed in late.all_input_nodes:
                late.replace_input_with(changed, node)
    module.recompile()


def drop_nothings(module: GraphModule) -> None:
    """Remove dropout, casts between floats, clones and dead nodes."""
    for node in list(module.graph.nodes):
        if node.target in _NOTHING or (node.target in _CASTS and _is_float(node)):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is operator.getitem and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _is_float(node: Node) -> bool:
    values: Any = [node.meta.get("val"), node.args[0].meta.get("val")]  # type: ignore[union-attr]
    return all(isinstance(v, Tensor) and v.dtype.is_floating_point for v in values)


def check_calibration(x: object) -> Tensor:
    """One calibration batch as float32[batch >= 1, ...]. Raises CalibrationError."""
    try:
        tensor = torch.as_tensor(x).detach().to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            "calibration batch", got=type(x).__name__, expected="an array"
        ) from error
    if tensor.ndim < 2 or not tensor.numel():
        raise CalibrationError(
            "calibration batch", got=list(tensor.shape), expected="[batch >= 1, *input shape]"
        )
    if not torch.isfinite(tensor).all():
        raise CalibrationError(
            "calibration batch", got="NaN or infinity", expected="finite numbers"
        )
    return tensor
