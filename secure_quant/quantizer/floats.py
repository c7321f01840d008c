"""The float model's value at each node of the integer graph: what the integers stand for."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import ShapeProp
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from secure_quant.ir import Graph
from secure_quant.ir.build import INT16_TABLE, Builder
from secure_quant.ir.terms import Term
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.lower.interpret import Lowering
from secure_quant.quantizer.pipeline import Settings, make_quantizer, split_batches

__all__ = ["FloatValues", "float_values"]

FloatValues = Callable[[NDArray[Any]], dict[str, NDArray[np.float32]]]
"""float[batch, *input shape] -> the float value at each node, float32[batch, *shape], by name."""


def float_values(model: nn.Module, graph: Graph, x: Any) -> FloatValues:
    """How ``model`` computes what the nodes of ``graph`` stand for.

    model  the float module that ``graph`` was made from.
    x      float[n, *input shape]; some samples to lower the model with once more, which tells
           which of its ops each node came from.

    Nodes that stand for no float value alone (a row's maximum inside a softmax, a table half-way)
    or that another version of the model would make are left out. Raises as ``quantize``.
    """
    batches = split_batches(x, 64)
    example = torch.cat([batches[0][:1]] * 2)
    prepared = prepare_pt2e(capture(model, example), make_quantizer(Settings()))
    with torch.no_grad():
        for batch in batches:
            prepared(batch)  # observers watch; nothing is rounded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, while it copies
        converted = convert_pt2e(copy.deepcopy(prepared))
    with torch.no_grad():
        ShapeProp(converted).propagate(example)
    lowering = _Recorder(converted, len(example), Builder(INT16_TABLE))
    rebuilt = lowering.run()
    origin = {
        name: source for name, source in lowering.origin.items() if _same(graph, rebuilt, name)
    }
    origin[graph.output.name] = _result(prepared)

    def values(part: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        inner = np.asarray(part, np.float32)
        recorder = _Values(prepared, set(origin.values()))
        with torch.no_grad():
            recorder.run(torch.from_numpy(inner))
        made = {graph.input.name: inner}
        for name, source in origin.items():
            value, shape = recorder.seen[source], (len(inner), *graph.values[name].shape)
            if value.numel() == math.prod(shape):
                made[name] = value.reshape(shape).numpy()
        return made

    return values


@dataclass
class _Recorder(Lowering):
    """Lowers, and remembers which fx node each plain ir value came from."""

    origin: dict[str, str] = field(default_factory=dict)

    def _visit(self, node: Node) -> Any:
        made = super()._visit(node)
        if isinstance(made, Term) and not made.functions:
            source = _float_source(node)
            if source.op != "placeholder":
                self.origin.setdefault(made.name, source.name)
        return made


def _float_source(node: Node) -> Node:
    """The op whose value a quantize or dequantize node passes on."""
    while "quantized_decomposed" in str(node.target):
        source = node.args[0]
        if not isinstance(source, Node):
            break
        node = source
    return node


def _same(graph: Graph, rebuilt: Graph, name: str) -> bool:
    """Whether the node ``name`` is the same step in both graphs."""
    ours, other = graph.by_name.get(name), rebuilt.by_name.get(name)
    if ours is None or other is None or type(ours) is not type(other):
        return False
    return ours.inputs == other.inputs and graph.values[name].shape == rebuilt.values[name].shape


def _result(module: GraphModule) -> str:
    """Name of the op whose value the module returns, behind any observer."""
    node: Any = next(n for n in module.graph.nodes if n.op == "output").args[0]
    while isinstance(node, tuple | list):
        (node,) = node
    while node.op == "call_module":
        (node,) = node.args
    return str(node.name)


class _Values(Interpreter):
    """Runs a module and keeps the tensors made by the nodes named ``wanted``."""

    def __init__(self, module: GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted:
            self.seen[n.name] = value.detach()
        return value
