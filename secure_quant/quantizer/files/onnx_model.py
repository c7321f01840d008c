"""An ONNX file, float or in QDQ form, as a torch module, compared with onnxruntime on the owner's
own data.

Every node becomes a module of its name, so that layers and errors are named as in the file. What
depends on no input (shapes too, once the input's is known) is computed by ONNX's own reference
implementation. Operators of torch do the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import inliner, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from secure_quant.errors import MalformedModel, UnsupportedModule
from secure_quant.quantizer.files.onnx_kept import KEPT, Grid, Rounded
from secure_quant.quantizer.files.onnx_layers import LAYERS
from secure_quant.quantizer.files.onnx_node import Batch, Host, NodeView, Value
from secure_quant.quantizer.files.onnx_values import VALUES
from secure_quant.quantizer.refuse import first_line

__all__ = ["OnnxModule", "checked", "loaded", "read_onnx"]

_OPERATORS = LAYERS | VALUES | KEPT
_DOMAINS = ("", "ai.onnx")
_OLDEST = 7
"""Operator set from which on broadcasting is what it is today."""
_SIZES = ("Resize", "Upsample")
"""Operators whose float arguments tell of shapes."""
_QDQ = "quantize to QDQ form (QuantizeLinear, DequantizeLinear); or give the float model"
_QUANTIZED = ("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger",
              "DynamicQuantizeLinear")  # fmt: skip


def read_onnx(file: str | os.PathLike[str]) -> OnnxModule:
    """The module of a float ONNX file: float32[batch, ...] in, what the file names as outputs out.

    Raises as ``loaded`` and ``checked``; UnsupportedModule for operators that torch has no call
    for, with the node's name.
    """
    return OnnxModule(checked(loaded(file)))


def loaded(file: str | os.PathLike[str]) -> onnx.ModelProto:
    """A file, with the external data beside it. Raises MalformedModel, OSError."""
    try:
        return onnx.load(file)
    except OSError:
        raise
    except Exception as error:  # protobuf's DecodeError, and what external data raises
        name, got = Path(file).name, type(error).__name__
        raise MalformedModel(
            f"{name} as ONNX", got=got, expected="an ONNX model and its external data, whole"
        ) from error


def checked(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model that is well-formed, its own functions in place. Raises MalformedModel."""
    shaped = onnx.ModelProto()
    shaped.CopyFrom(proto)
    for output in shaped.graph.output:  # every runtime works without
        output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(shaped)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise MalformedModel("the ONNX model", got=first_line(error)) from error
    return inliner.inline_local_functions(proto) if proto.functions else proto


class _Step(nn.Module):
    """One node. ``constants``, by their place, stand among the arguments that it gets."""

    def __init__(self, node: onnx.NodeProto, view: NodeView, constants: dict[int, Any]) -> None:
        super().__init__()
        self.node, self.view, self._constants = node, view, constants
        for at, value in constants.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(f"p{at}", value)
                constants[at] = f"p{at}"

    def arguments(self, given: Sequence[Any]) -> list[Any]:
        """All of them, in the operator's order."""
        rest, made = iter(given), []
        for at in range(len(self.node.input)):
            value = self._constants[at] if at in self._constants else next(rest)
            made.append(getattr(self, value) if isinstance(value, str) else value)
        return made

    def forward(self, *given: Any) -> Any:
        """The operator's value or values."""
        return _OPERATORS[self.view.kind](self.view, *self.arguments(given))

    def known(self, given: Sequence[Any]) -> Sequence[Any] | None:
        """The same where it follows from shapes and constants alone, else None."""
        if self.view.kind == "Shape":
            size = list(given[0].shape)
            end = self.view.get("end")
            return [np.array(size[self.view.get("start", 0) : end], np.int64)]
        arguments = self.arguments(given)
        if all(each is None or isinstance(each, Host) for each in arguments):
            return _computed(self.node, arguments, self.view)
        return None


class _Wire(NamedTuple):
    """step: label of the node's module. names: of the arguments that are no constants."""

    step: str
    names: list[str]
    outputs: list[str]


class OnnxModule(nn.Module):
    """The nodes of an ONNX graph in their order.

    inputs   names of the inputs, in order.
    outputs  names of the outputs; with one, ``forward`` returns the tensor itself.
    batch    the size that the file fixes, if it does. Other sizes are computed too.
    proto    the model as it was read.
    wiring   what goes into each node and comes out of it.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        self.proto, graph = proto, proto.graph
        self._opset = _operator_set(proto)
        constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self.inputs = [each.name for each in graph.input if each.name not in constants]
        self.outputs = [each.name for each in graph.output]
        if not self.inputs:
            raise UnsupportedModule("the ONNX graph", got="no inputs", expected="at least one")
        self.batch = Batch(_fixed_batch(graph, self.inputs[0]))
        self._parameters_of: dict[str, nn.Parameter] = {}
        self._rounded = Rounded()
        if any(node.op_type in KEPT for node in graph.node):
            self.sq_kept, self.batch.rounded = self._rounded.scales, True
        self.wiring: list[_Wire] = []
        for proto_node in graph.node:
            self._add(proto_node, constants)
        self.eval()

    @property
    def grids(self) -> Mapping[str, Grid]:
        """Of every value between a QuantizeLinear and its DequantizeLinear."""
        return self._rounded.grids

    def _add(self, node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> None:
        """Fold a node of constants, keep any other as a step."""
        view = NodeView(node, self._opset, self.batch)
        if node.domain not in _DOMAINS:
            raise view.refused(f"the domain {node.domain}", "operators of ONNX itself")
        known = [name for name in node.input if name in constants or not name]
        if len(known) == len(node.input) and node.op_type not in ("RandomNormal", "RandomUniform"):
            given = [constants.get(n) for n in node.input]
            made = _computed(node, given, view)
            self._rounded.constant(view, given)
            constants.update(zip(node.output, made, strict=False))
            return
        if node.op_type not in (*_OPERATORS, "Shape"):
            quantized = node.op_type in _QUANTIZED
            raise view.refused(
                "an operator on integers" if quantized else "an operator that is not read",
                hint=_QDQ if quantized else None,
            )
        own = {
            at: self._constant(name, constants.get(name), node.op_type in _SIZES)
            for at, name in enumerate(node.input) if name in constants or not name
        }  # fmt: skip
        self._rounded.follow(view, node, constants)
        names = [name for name in node.input if name and name not in constants]
        label = re.sub(r"\W+", "_", view.name).strip("_") or node.op_type
        while hasattr(self, label):
            label += "_"
        self.add_module(label, _Step(node, view, own))
        self.wiring.append(_Wire(label, names, list(node.output)))

    def _constant(self, name: str, value: NDArray[Any] | None, sizes: bool) -> Any:
        """Floats take part in arithmetic, as parameters (one for each name); the rest is known."""
        if value is None or value.dtype.kind != "f" or value.size == 1 or sizes:
            return value
        if name not in self._parameters_of:
            tensor = torch.from_numpy(np.array(value, np.float32))
            self._parameters_of[name] = nn.Parameter(tensor, requires_grad=value.ndim > 1)
        return self._parameters_of[name]

    def forward(self, *xs: Tensor) -> Any:
        """The outputs for inputs in the file's order. Raises UnsupportedModule."""
        made = self.values(*xs)
        found = [made[name] for name in self.outputs]
        return found[0] if len(found) == 1 else dict(zip(self.outputs, found, strict=True))

    def values(self, *xs: Tensor, forced: Mapping[str, Tensor] | None = None) -> dict[str, Value]:
        """Every value of the graph by its name. ``forced``: what readers of a value get in place of
        it."""
        values: dict[str, Any] = dict(zip(self.inputs, xs, strict=True))
        self.batch.today = xs[0].shape[0]
        for wire in self.wiring:
            given = [(forced or values).get(name, values[name]) for name in wire.names]
            step: Any = self.get_submodule(wire.step)
            made = step.known(given)
            if made is None:
                made = step(*given)
            made = made if isinstance(made, tuple | list) else (made,)
            values.update(zip(wire.outputs, made, strict=False))
        return values


def _operator_set(proto: onnx.ModelProto) -> int:
    for each in proto.opset_import:
        if each.domain in _DOMAINS:
            if each.version < _OLDEST:
                got, hint = f"operator set {each.version}", "convert it by onnx.version_converter"
                raise UnsupportedModule("the ONNX model", got=got, expected=">= 7", hint=hint)
            return int(each.version)
    raise MalformedModel("the ONNX model", got="no operator set")


def _fixed_batch(graph: onnx.GraphProto, name: str) -> int | None:
    shape = next(each for each in graph.input if each.name == name).type.tensor_type.shape
    first = shape.dim[0] if shape.dim else None
    return int(first.dim_value) if first is not None and first.HasField("dim_value") else None


def _computed(node: onnx.NodeProto, given: Sequence[Any], view: NodeView) -> Sequence[Any]:
    """A node of known arguments, by ONNX's reference implementation."""
    inputs = {name: value for name, value in zip(node.input, given, strict=True) if name}
    try:
        single = ReferenceEvaluator(node, opsets={"": view.opset})
        return list(single.run(None, inputs))
    except Exception as error:
        raise view.refused(f"{type(error).__name__} in a constant") from error
