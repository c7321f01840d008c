"""What torch.export and TorchScript made, as a module whose layers keep their names."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from secure_quant.errors import MalformedModel, UnsupportedModule
from secure_quant.quantizer.refuse import first_line

__all__ = [
    "any_batch",
    "fixed_batch",
    "module_of_program",
    "module_of_script",
    "plain_convolution",
    "read_program",
    "read_script",
]

aten = torch.ops.aten
_CONVS = {
    (3, False): aten.conv1d.default, (4, False): aten.conv2d.default,
    (5, False): aten.conv3d.default, (3, True): aten.conv_transpose1d.default,
    (4, True): aten.conv_transpose2d.input, (5, True): aten.conv_transpose3d.input,
}  # fmt: skip
"""By the rank of the weight, and whether it is transposed."""
_SIZED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)

NAMES = "sq_names"
"""Attribute of a module from a file: its inputs' names."""


def read_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """A ``.pt2`` file of torch.export.save. Raises MalformedModel."""
    try:
        with _without_its_log():
            return torch.export.load(path)
    except Exception as error:
        got = first_line(error)
        raise MalformedModel(f"{Path(path).name} as an exported program", got=got) from error


@contextmanager
def _without_its_log() -> Iterator[None]:
    """torch.export logs a traceback of what it then raises."""
    logger = logging.getLogger("torch.export")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def names_of_program(program: ExportedProgram) -> tuple[str, ...] | None:
    """Of the inputs, in order; None where some go by name."""
    given = program.call_spec.in_spec
    by_name = given is not None and given.num_children > 1 and given.child(1).num_leaves
    names = tuple(n for n in program.graph_signature.user_inputs if isinstance(n, str))
    return None if by_name else names


def names_of_script(script: torch.jit.ScriptModule) -> tuple[str, ...] | None:
    """Of the arguments of its forward, in order; None where it has none."""
    try:
        return tuple(each.name for each in script.forward.schema.arguments[1:])  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        return None


def module_of_program(program: ExportedProgram) -> nn.Module:
    """A module that computes what ``program`` does, for any batch size where its shapes allow.

    Raises UnsupportedModule.
    """
    try:
        module = torch.export.unflatten(program)
    except Exception as error:
        raise UnsupportedModule(
            "ExportedProgram", got=first_line(error),
            hint="pass the Python module that it was exported from",
        ) from error  # fmt: skip
    # It was checked when it was exported, for that batch alone.
    module.check_input_constraints = False
    batch = fixed_batch(program)
    module.meta.clear()
    whole: Any = module.graph_module
    for part in (*module.modules(), *whole.modules()):
        for held in (vars(part), part._buffers):
            for name, value in held.items():
                if isinstance(value, Tensor):
                    held[name] = value.detach()  # else it cannot be copied
        graph = getattr(part, "graph", None)
        if isinstance(graph, torch.fx.Graph):
            for node in graph.nodes:
                plain_convolution(node)
                if batch is not None:
                    any_batch(node, batch)
            for node in graph.nodes:
                # Fake tensors in it cannot be copied, and whoever captures this makes others.
                node.meta = {}
    names = names_of_program(program)
    if names is not None:
        setattr(module, NAMES, names)
    return module


def fixed_batch(program: ExportedProgram) -> int | None:
    """The batch size of a program that allows no other."""
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in inputs and node.meta["val"].ndim:
            size = node.meta["val"].shape[0]
            return size if isinstance(size, int) else None
    return None


def any_batch(node: Node, batch: int) -> None:
    """Put -1 for the first of constant sizes where it holds the batch, alone or with other axes."""
    value = node.meta.get("val")
    if node.target in _SIZED and isinstance(value, Tensor) and value.ndim:
        sizes = [int(size) for size in value.shape]
        if sizes[0] % batch == 0 and 0 not in sizes:
            node.args = (node.args[0], [-1, *sizes[1:]])


def plain_convolution(node: Node) -> None:
    """Tracing and decomposition leave one op for every convolution: name it as modules do."""
    if node.target not in (aten.convolution.default, aten._convolution.default):
        return
    x, weight, bias, stride, padding, dilation, transposed, more, groups, *_ = node.args
    shape: Any = weight.meta["val"].shape if isinstance(weight, Node) else ()
    target = _CONVS.get((len(shape), bool(transposed)))
    if target is None:
        return
    args = [x, weight, bias, stride, padding]
    node.target = target
    node.args = (*args, more, groups, dilation) if transposed else (*args, dilation, groups)


def read_script(path: str | os.PathLike[str]) -> torch.jit.ScriptModule:
    """A file of torch.jit.save. Raises MalformedModel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            script: torch.jit.ScriptModule = torch.jit.load(os.fspath(path), map_location="cpu")  # type: ignore[no-untyped-call]
            return script.eval()
    except (RuntimeError, ValueError) as error:
        got = first_line(error)
        raise MalformedModel(f"{Path(path).name} as TorchScript", got=got) from error


def module_of_script(script: torch.jit.ScriptModule, example: Sequence[Tensor]) -> nn.Module:
    """A module that computes what a scripted or traced one does, where torch can still convert it.

    Raises UnsupportedModule.
    """
    from torch._export.converter import TS2EPConverter

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = TS2EPConverter(script, tuple(example)).convert()
    except Exception as error:
        raise UnsupportedModule(
            "TorchScript", got=first_line(error),
            hint="pass the Python module that it was made from, or an ONNX file",
        ) from error  # fmt: skip
    module = module_of_program(program)
    names = names_of_script(script)
    if names is not None:
        setattr(module, NAMES, names)
    return module
