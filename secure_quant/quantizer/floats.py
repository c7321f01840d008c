"""The float model's value at each node of the integer graph: what the integers stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from secure_quant import reference
from secure_quant.errors import CaptureMismatch, UnsupportedModule
from secure_quant.ir import Graph, ops
from secure_quant.quantizer._torchao import quiet
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.gate import Gate
from secure_quant.quantizer.gate.floatgraph import FloatGraph, captured_batch, in_batches
from secure_quant.quantizer.gate.owner import Owner
from secure_quant.quantizer.inputs import as_one, packed
from secure_quant.quantizer.lower.record import Recorded, lower_recorded
from secure_quant.quantizer.passes import rewrite, specialize
from secure_quant.quantizer.pipeline import Settings, copied, make_quantizer
from secure_quant.quantizer.ports import parts_of
from secure_quant.quantizer.refuse import failures_named

__all__ = ["FloatValues", "float_values", "outputs_of", "values_at"]

FloatValues = Callable[[Any], dict[str, NDArray[np.float32]]]
"""float[batch, *input shape], or arrays by name -> the float value at each node, float32[batch,
*shape], by name."""


def float_values(model: nn.Module, graph: Graph, x: Any) -> FloatValues:
    """How ``model`` computes what the nodes of ``graph`` stand for.

    model  the float module that ``graph`` was made from.
    x      float[n, *input shape]; some samples to lower the model with once more, which tells
           which of its ops each node came from.

    The value at the output is what a copy of ``model`` itself gives; the nodes before it have those
    of the captured graph, which equals the module, or are left out: nodes that stand for no float
    value alone (a row's maximum inside a softmax, a table half-way), that another version of the
    model would make, and all of a module that cannot be captured. Raises CalibrationError, and
    UnsupportedModule for a module that cannot be run.
    """
    secret = any(isinstance(node, ops.Embedding) for node in graph.nodes)
    tables = "private" if secret else "client" if graph.lookups else None
    model, batches = as_one(model, x, 64, tables)
    owner = Owner(model)
    captured: tuple[GraphModule, Recorded] | None = None
    with suppress(CaptureMismatch, UnsupportedModule):
        captured = _captured(model, graph, batches)

    def values(part: Any) -> dict[str, NDArray[np.float32]]:
        inner = packed(model, part)
        made = inputs_at(graph, inner)
        if captured is not None:
            made |= values_at(*captured, inner)
        whole = owner.run(torch.from_numpy(inner), torch.float32).numpy()
        outputs = reference.named(graph, whole)
        made |= {port.node: outputs[port.name] for port in graph.output_ports}
        made[graph.output.name] = whole.reshape(len(inner), *graph.values[graph.output.name].shape)
        return made

    return values


def outputs_of(model: nn.Module, x: Any) -> list[NDArray[np.float32]]:
    """What ``model`` itself gives, float32[n, ...] each; ``x``: an array, or arrays by name.
    Raises CalibrationError, UnsupportedModule."""
    module, batches = as_one(model, x, 64)
    owner = Owner(module)
    whole = torch.cat([owner.run(batch, torch.float32) for batch in batches])
    return [part.numpy() for part in parts_of(whole, owner.outputs).values()]


def _captured(
    model: nn.Module, graph: Graph, batches: Sequence[Tensor]
) -> tuple[GraphModule, Recorded]:
    """The float graph, and which of its values the nodes of ``graph`` stand for."""
    gate = Gate(model, batches)
    example = torch.cat([batches[0][:1]] * 2)
    with quiet(), failures_named(f"capturing {type(model).__name__}"):
        module = rewrite(capture(model, example))
    gate.check(module)
    # These samples may show other features to be large than those of the calibration did.
    found = _lowered(copied(module), graph, batches, example, spread=True)
    if len(found[1].origin) < len(graph.nodes) - 2:
        plain = _lowered(module, graph, batches, example, spread=False)
        found = max(found, plain, key=lambda each: len(each[1].origin))
    return found


def _lowered(
    module: GraphModule, graph: Graph, batches: Sequence[Tensor], example: Tensor, *, spread: bool
) -> tuple[GraphModule, Recorded]:
    with quiet(), failures_named("rewriting the float model"):
        special = specialize(module, batches, spread=spread)
        prepared = prepare_pt2e(special, make_quantizer(Settings()))
    with quiet(), torch.no_grad(), failures_named("lowering the float model"):
        for batch in batches:  # observers watch; nothing is rounded
            in_batches(prepared, batch.clone(), captured_batch(prepared))
        recorded = lower_recorded(convert_pt2e(copied(prepared)), example)
    same = {
        name: source
        for name, source in recorded.origin.items()
        if _same(graph, recorded.graph, name)
    }
    return prepared, recorded._replace(graph=graph, origin=same)


def values_at(
    floats: GraphModule, recorded: Recorded, x: NDArray[Any]
) -> dict[str, NDArray[np.float32]]:
    """The values of a prepared graph, observers aside, at the nodes of the integer graph made from
    it: float32[n, *shape] by name, for float32[n, *input shape]."""
    sources: dict[str, list[str]] = {}
    for name, source in recorded.origin.items():
        sources.setdefault(source, []).append(name)
    seen: dict[str, list[Tensor]] = {}

    def watch(node: Node, value: Tensor) -> None:
        if node.name in sources:
            seen.setdefault(node.name, []).append(value.clone())

    graph = recorded.graph
    FloatGraph(floats, torch.float32, watch).evaluate(torch.from_numpy(x))
    made = inputs_at(graph, x)
    for source, parts in seen.items():
        value = torch.cat(parts)[: len(x)]
        for name in sources[source]:
            shape = (len(x), *graph.values[name].shape)
            if value.numel() == math.prod(shape):
                made[name] = value.reshape(shape).numpy()
    return made


def inputs_at(graph: Graph, x: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """``x`` as it stands at the Input, or at each port of it; not where rows are looked up."""
    flat, start = x.reshape(len(x), -1), 0
    made: dict[str, NDArray[np.float32]] = {}
    for port in graph.input_ports:
        stop = start + math.prod(port.asked)
        if not port.rows:
            made[port.node] = flat[:, start:stop].reshape(len(x), *port.shape)
        start = stop
    return made


def _same(graph: Graph, rebuilt: Graph, name: str) -> bool:
    """Whether the node ``name`` is the same step in both graphs."""
    ours, other = graph.by_name.get(name), rebuilt.by_name.get(name)
    if ours is None or other is None or type(ours) is not type(other):
        return False
    return ours.inputs == other.inputs and graph.values[name].shape == rebuilt.values[name].shape
