"""What torch's pt2e has converted: quantize and dequantize nodes, as a module that keeps scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer._torchao import quiet
from secure_quant.quantizer.files.programs import any_batch, fixed_batch, plain_convolution
from secure_quant.quantizer.kept import ON_GRID, KeptScales
from secure_quant.quantizer.refuse import first_line

__all__ = ["exported", "is_converted", "module_of_converted"]

_OPS: Any = torch.ops.quantized_decomposed
_QUANTIZE = {_OPS.quantize_per_tensor.default, _OPS.quantize_per_tensor.tensor}
_DEQUANTIZE = {_OPS.dequantize_per_tensor.default, _OPS.dequantize_per_tensor.tensor}
_CHANNELS = {_OPS.dequantize_per_channel.default}
_BYTES = (torch.int8, torch.uint8)
_WAY = "static quantization, one scale for each activation"


def is_converted(graph: torch.fx.Graph) -> bool:
    """Whether a graph has nodes that quantize or dequantize."""
    return any("quantized_decomposed" in str(node.target) for node in graph.nodes)


def exported(model: GraphModule, example: Sequence[Tensor]) -> ExportedProgram:
    """A graph that ``convert_pt2e`` returned, as a program. Raises UnsupportedModule."""
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model, tuple(example))
    except Exception as error:
        raise UnsupportedModule("a converted graph", got=first_line(error)) from error


def module_of_converted(program: ExportedProgram) -> nn.Module:
    """A module with ``on_grid`` where the program rounds, and with float weights on their grids.

    Raises UnsupportedModule for run-time scales, integers that anything but a dequantize node
    reads, and dequantize nodes of another scale than what they read has.
    """
    batch = fixed_batch(program)
    flat: Any = program.module(check_guards=False)
    kept = KeptScales()
    for node in list(flat.graph.nodes):
        plain_convolution(node)
        if batch is not None:
            any_batch(node, batch)
    for node in list(flat.graph.nodes):
        if node.target in _QUANTIZE:
            _round(flat, node)
        elif node.target in _DEQUANTIZE | _CHANNELS:
            _real(flat, node, kept)
        elif "quantized_decomposed" in str(node.target):
            raise UnsupportedModule(f"{node.target}", got="a scale at run time", expected=_WAY)
    flat.graph.eliminate_dead_code()
    flat.graph.set_codegen(torch.fx.graph.CodeGen())
    made = GraphModule(flat, flat.graph)
    for node in made.graph.nodes:
        node.meta = {}
    made.sq_kept = kept  # type: ignore[assignment]
    return made


def _round(flat: GraphModule, node: Node) -> None:
    """Turn a quantize node into ``on_grid``."""
    parameters = _parameters(flat, node)
    for user in node.users:
        if user.target not in _DEQUANTIZE or user.args[0] is not node:
            raise UnsupportedModule(
                f"{user.target} after quantize", got="integers", expected="a dequantize node"
            )
        other = _parameters(flat, user)
        if other != parameters:
            raise UnsupportedModule(
                "dequantize after quantize", got=f"scale and zero point {other[:2]}",
                expected=f"{parameters[:2]}, as before",
            )  # fmt: skip
    node.target = ON_GRID
    node.args = (node.args[0], *parameters)
    node.kwargs = {}


def _parameters(flat: GraphModule, node: Node) -> tuple[float, int, int, int]:
    given = [_known(flat, argument) for argument in node.args[1:5]]
    if any(each is None for each in given):
        raise UnsupportedModule(f"{node.target}", got="a scale at run time", expected=_WAY)
    scale, zero_point, low, high = given
    return float(scale), int(zero_point), int(low), int(high)


def _known(flat: GraphModule, argument: Any) -> Any:
    """A number, or what a get_attr node holds; None for what is computed."""
    if not isinstance(argument, Node):
        return argument
    if argument.op != "get_attr":
        return None
    owner, _, name = str(argument.target).rpartition(".")
    value = getattr(flat.get_submodule(owner), name)
    return value.detach() if isinstance(value, Tensor) else value


def _real(flat: GraphModule, node: Node, kept: KeptScales) -> None:
    """Pass on what was rounded; make a float parameter of a constant."""
    source: Any = node.args[0]
    if source.target is ON_GRID:
        node.replace_all_uses_with(source)
        flat.graph.erase_node(node)
        return
    whole = _known(flat, source)
    arguments = [_known(flat, argument) for argument in node.args[1:]]
    if whole is None or any(each is None for each in arguments):
        raise UnsupportedModule(f"{node.target}", got="integers from elsewhere", expected=_WAY)
    made = node.target(whole, *arguments, **node.kwargs)  # type: ignore[operator]
    if whole.dtype in _BYTES:
        scale = arguments[0]
        kept.add(scale.double().reshape(-1).tolist() if isinstance(scale, Tensor) else [scale])
    name = f"kept{sum(1 for _ in flat.parameters())}"
    flat.register_parameter(name, nn.Parameter(made.detach().float(), requires_grad=False))
    with flat.graph.inserting_before(node):
        parameter = flat.graph.get_attr(name)
    node.replace_all_uses_with(parameter)
    flat.graph.erase_node(node)
