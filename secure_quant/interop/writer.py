"""What both exports to ONNX are written with: nodes and constants so far, names of the borders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from secure_quant.errors import MissingParameters
from secure_quant.ir import Graph, ops
from secure_quant.ir.bounds import only_rounds
from secure_quant.ir.ports import Port

__all__ = ["OPSET", "Writer", "along", "border_names", "finished", "shifts", "window"]

OPSET = 21


class Writer:
    """Nodes and constants so far; ``names`` maps ir values to ONNX values. Raises
    MissingParameters for a public graph."""

    def __init__(self, graph: Graph) -> None:
        if graph.is_public:
            raise MissingParameters(
                "export of a public graph", expected="the model with its weights"
            )
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.names: dict[str, str] = {}
        self._count = 0
        self.inputs, self.outputs = border_names(graph)

    def new(self, kind: str) -> str:
        """A new one, that no input or output has."""
        self._count += 1
        while (made := f"{kind}{self._count}") in self.inputs or made in self.outputs:
            self._count += 1
        return made

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One ONNX node with one output, whose name is returned."""
        made = self.new("v")
        self.nodes.append(helper.make_node(kind, list(inputs), [made], **attributes))
        return made

    def constant(self, array: NDArray[Any]) -> str:
        made = self.new("c")
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), made))
        return made

    def integer(self, value: int) -> str:
        return self.constant(np.array(value, np.int64))


def window(node: Any) -> dict[str, Any]:
    """Attributes of a convolution or a pool."""
    (ph, pw), stride = node.padding, node.stride
    return {"kernel_shape": node.kernel, "strides": stride, "pads": (ph, pw, ph, pw)}


def along(numbers: Any, axis: int, rank: int) -> NDArray[Any]:
    """Shaped to broadcast along ``axis`` of the sample. The reference has its own: what is exported
    is a witness against it, and shares no code with it."""
    shape = [1] * rank
    shape[axis] = len(numbers)
    return np.reshape(np.asarray(numbers), shape)


def shifts(graph: Graph, node: ops.Node) -> bool:
    """A Rescale that only rounds, so that its scale is known ahead."""
    return isinstance(node, ops.Rescale) and only_rounds(node, graph.values[node.inputs[0]].centred)


def border_names(graph: Graph) -> tuple[dict[str, Port], dict[str, Port]]:
    """Inputs and outputs of the ONNX model by name; ``x`` and ``y`` where the graph has no ports.
    An output that is called as an input is, has an apostrophe behind it."""
    ends = {graph.input.name: "x", graph.output.name: "y"}
    inputs = {ends.get(port.node, port.name): port for port in graph.input_ports}
    outputs: dict[str, Port] = {}
    for port in graph.output_ports:
        name = ends.get(port.node, port.name)
        while name in inputs or name in outputs:
            name += "'"
        outputs[name] = port
    return inputs, outputs


def finished(
    writer: Writer,
    inputs: Mapping[str, tuple[int, tuple[int, ...]]],
    outputs: Mapping[str, tuple[int, tuple[int, ...]]],
) -> onnx.ModelProto:
    """The checked model. inputs, outputs: by name, ONNX type and per-sample shape."""
    first, last = (
        [helper.make_tensor_value_info(n, kind, ["batch", *shape])
         for n, (kind, shape) in ends.items()]
        for ends in (inputs, outputs)
    )  # fmt: skip
    made = helper.make_graph(writer.nodes, "secure_quant", first, last, writer.constants)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="secure_quant"
    )
    model.ir_version = 10
    model.metadata_props.add(key="secure_quant.hash", value=writer.graph.hash)
    onnx.checker.check_model(model, full_check=True)
    return model
