"""A lowering that remembers which node of the converted graph each integer value came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import ShapeProp

from secure_quant.ir import Graph
from secure_quant.ir.build import INT16_TABLE, Builder
from secure_quant.ir.terms import Term
from secure_quant.ir.verify import MAX_TABLE
from secure_quant.quantizer.lower.interpret import Lowering

__all__ = ["Recorded", "lower_recorded"]


class Recorded(NamedTuple):
    """graph, and by names: places, node of the converted graph -> node of the ir that has its
    value; origin, node of the ir -> the float op whose value it stands for."""

    graph: Graph
    places: dict[str, str]
    origin: dict[str, str]


def lower_recorded(
    converted: GraphModule, example: Tensor, *, fine: bool = False, dynamic: bool = False,
    kept: Tensor | None = None,
) -> Recorded:  # fmt: skip
    """The integer graph of a converted model, with what came from where; ``example``
    float32[batch, ...] gives the shapes. ``fine`` gives tables to int16 as many entries as they may
    have. ``dynamic`` gives what enters a layer with weights its scale at run time. ``kept``: scales
    of the weights of a model that is quantized already, whose own scales are taken.

    Raises UnsupportedModule, OverflowRisk, InvalidGraph.
    """
    with torch.no_grad():
        ShapeProp(converted).propagate(example)
    builder = Builder(MAX_TABLE if fine else INT16_TABLE)
    recorder = _Recorder(converted, len(example), builder, dynamic=dynamic, kept=kept)
    graph = recorder.run()
    places = {node: name for node, name in recorder.places.items() if name in graph.by_name}
    origin = {name: node for name, node in recorder.origin.items() if name in graph.by_name}
    return Recorded(graph, places, origin)


@dataclass
class _Recorder(Lowering):
    places: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def _visit(self, node: Node) -> Any:
        made = super()._visit(node)
        if isinstance(made, Term) and not made.functions:
            self.places[node.name] = made.name
            source = _float_source(node)
            if source.op != "placeholder":
                if made.accumulator:  # the last has its multipliers
                    self.origin[made.name] = source.name
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
