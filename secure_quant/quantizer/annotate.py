"""The pt2e Quantizer: says where in the graph an integer activation stands."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from secure_quant.ir.values import INT32
from secure_quant.quantizer.notes import COUNT, TABLE_RANGE, UNROUNDED
from secure_quant.quantizer.observers import RangeObserver, WeightObserver
from secure_quant.quantizer.opset import (
    ADDITIVE,
    CONCAT,
    ELEMENTWISE,
    MONOTONE,
    OPS,
    PRODUCTS,
    SHAPING,
    SUMS,
    WEIGHTED,
    find_roots,
    tensor_inputs,
)
from secure_quant.quantizer.passes.edit import BITS, CUT, EXACT, LARGEST, POSITIVE, STEPS
from secure_quant.quantizer.ports import INPUT_PORT, LOOKUP_PORT, OUTPUT_PORTS, PORTS, ends_here
from secure_quant.quantizer.refuse import unsupported
from secure_quant.quantizer.summands import keep_sums_unrounded

__all__ = ["IntegerQuantizer"]

aten = torch.ops.aten

_TWO = "write it with +, -, * and functions of one value"
_RESHAPED = SUMS | {aten.conv1d.default}
"""Their accumulators have another shape than the model's values, so they cannot be the output."""


@dataclass
class IntegerQuantizer(Quantizer):  # type: ignore[misc]
    """Observes each value that becomes an int8 activation: what a Requantize makes.

    An accumulator and the elementwise functions behind it are one Requantize, so only the last of
    such a chain is observed. Maxima and shape ops keep the integers and need no observer. The
    model's output stays an accumulator where nothing follows it.
    """

    activation: Callable[..., Any] = field(default=RangeObserver)
    weight: Callable[..., Any] = field(default=WeightObserver)
    output_weight: Callable[..., Any] = field(default=WeightObserver)
    bits: int = 8
    sums: bool = True
    """Whether a sum may take a layer's accumulator as it stands."""

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """A function of a value and of what was made of it, ``h + relu(h)``, reads the accumulator
        where all else that reads ``relu(h)`` reads the rounded one: it gets a chain of its own."""
        nodes = list(model.graph.nodes)
        roots = find_roots(nodes)
        sources: dict[Node, Node] = {}
        for node in nodes:
            if node not in roots:
                continue
            read = {sources[n] for n in tensor_inputs(node, roots)}
            if roots[node] is not node and len(read) > 1:
                _give_own_chain(node, roots)
                read = {roots[node]}
            whole = roots[node] is node or _is_observed(node, roots)
            sources[node] = node if whole else read.pop()
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = list(model.graph.nodes)
        roots = find_roots(nodes)
        if self.sums:
            keep_sums_unrounded(nodes, roots)
        for node in nodes:
            if node not in roots:
                continue
            if node.target in CONCAT:
                self._annotate_concat(node)
                continue
            specs = {node.args[1]: self._weight_spec(node)} if node.target in WEIGHTED else {}
            if node.target is OUTPUT_PORTS:
                shared = [n for n in node.all_input_nodes if _is_read_on(n, roots)]
                specs = {n: self._activation_spec(self.bits) for n in shared}
            spec = self._own_spec(node) if _is_observed(node, roots) else None
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map=specs, output_qspec=spec, _annotated=True
            )
        return model

    def validate(self, model: GraphModule) -> None:
        """Raises UnsupportedModule at the first op without a lowering, and at a function of two
        values, which no table can hold."""
        roots = find_roots(list(model.graph.nodes))
        for node in roots:
            source = node.op == "placeholder" or node.target in PORTS
            if source or ends_here(node) or node.target is operator.getitem:
                continue
            if node.op != "call_function" or node.target not in OPS:
                raise unsupported(node)
            if node.target in ELEMENTWISE and roots[node] is node:
                raise unsupported(node, "a function of two values", _TWO)

    def _annotate_concat(self, node: Node) -> None:
        """One grid for all operands and the result. It belongs to the edges into the join, not to
        the operands: whatever else reads those keeps its own grid, and an operand that is on
        another is rounded once more at the edge."""
        joined: Any = node.args[0]
        first, *others = dict.fromkeys(joined)
        shared = SharedQuantizationSpec((first, node))
        specs: dict[Any, Any] = {first: self._own_spec(node)}
        specs |= dict.fromkeys(others, shared)
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=specs, output_qspec=shared, allow_implicit_sharing=False,
            _annotated=True,
        )  # fmt: skip

    def _own_spec(self, node: Node) -> QuantizationSpec:
        if node.op == "placeholder":
            return self._activation_spec()
        if node.target is LOOKUP_PORT:
            return self._activation_spec(within=node.meta[TABLE_RANGE])
        if node.target is INPUT_PORT:
            whole = {} if node.args[2] == "float32" else {"whole": True}
            return self._activation_spec(**whole)
        if COUNT in node.meta:
            low, high = node.meta[COUNT]
            bits = self.bits if high - low < 2**self.bits else 12
            within = min(low, 0.0), max(high, 0.0)
            return self._activation_spec(bits, within=within, whole=True, calibrator="minmax")
        if STEPS in node.meta:
            return self._steps_spec(node.meta[STEPS])
        options = {
            name: node.meta[key]
            for name, key in (
                ("largest", LARGEST),
                ("positive", POSITIVE),
                ("cut", CUT),
                ("within", TABLE_RANGE),
            )
            if key in node.meta
        }
        bits = max(node.meta.get(BITS, 8), self.bits)
        room = max(_room(node), 255)  # int8 always has its 255 steps
        if bits > 8 and room < 2**bits:
            options["largest"] = min(options.get("largest", room), room)
        return self._activation_spec(bits, **options)

    def _steps_spec(self, steps: int) -> QuantizationSpec:
        return QuantizationSpec(
            torch.int8, self.activation, quant_min=0, quant_max=steps,
            qscheme=torch.per_tensor_affine,
        )  # fmt: skip

    def _activation_spec(self, bits: int = 8, **options: Any) -> QuantizationSpec:
        half = 2 ** (bits - 1)
        return QuantizationSpec(
            torch.int8 if bits == 8 else torch.int16, _with_args(self.activation, options),
            quant_min=-half, quant_max=half - 1, qscheme=torch.per_tensor_affine,
        )  # fmt: skip

    def _weight_spec(self, node: Node) -> QuantizationSpec:
        # At the output the client applies the multipliers, where they cost nothing.
        last = all(map(ends_here, node.users))
        return QuantizationSpec(
            torch.int8, self.output_weight if last else self.weight, quant_min=-127, quant_max=127,
            qscheme=torch.per_channel_symmetric, ch_axis=0,
        )  # fmt: skip


def _give_own_chain(reader: Node, roots: dict[Node, Node]) -> None:
    """Copies of all that lies between ``reader`` and the value that it is a function of."""
    made = {roots[reader]: roots[reader]}

    def copied(node: Node) -> Node:
        if node not in roots:
            return node
        if node not in made:
            inputs = {n: copied(n) for n in node.all_input_nodes}
            with reader.graph.inserting_before(reader):
                made[node] = reader.graph.node_copy(node, inputs.__getitem__)
        return made[node]

    for source in reader.all_input_nodes:
        reader.replace_input_with(source, copied(source))


def _room(node: Node) -> int:
    """Largest |x̂| with which every sum over ``node`` stays in int32, whatever the weights are."""
    found = INT32.hi
    for user in node.users:
        if user.target in SHAPING or user.target is operator.getitem or user.target in MONOTONE:
            room = _room(user)
        elif user.target in WEIGHTED:
            weight: Any = user.args[1]
            room = INT32.hi // (127 * max(weight.meta["val"][0].numel(), 1))
        elif user.target in (aten.matmul.default, aten.bmm.default):
            first: Any = user.args[0]
            room = math.isqrt(INT32.hi // int(first.meta["val"].shape[-1]))
        else:
            continue
        found = min(found, room)
    return found


def _with_args(observer: Any, options: dict[str, Any]) -> Any:
    """The observer's constructor with more options; torchao does not look into nested ones."""
    partial = getattr(observer, "p", None)
    if not options or partial is None:
        return observer.with_args(**options) if options else observer
    return partial.func.with_args(**{**partial.keywords, **options})


def _is_observed(node: Node, roots: dict[Node, Node]) -> bool:
    """True if ``node`` must be an integer activation: some reader is not fused with it."""
    if node.op == "placeholder":
        return not any(user.target in PORTS for user in node.users)
    if node.target in PORTS:
        return True
    if node.meta.get(EXACT) or node.meta.get(UNROUNDED):
        return False
    if node.target not in PRODUCTS | SUMS | ADDITIVE | ELEMENTWISE:
        return False
    accumulator = roots[node] is node and node.target not in _RESHAPED
    return any(
        not accumulator if ends_here(user) else roots.get(user) is not roots[node]
        for user in node.users
        if user in roots and user.target not in CONCAT  # a join observes its own edges
    )


def _is_read_on(node: Node, roots: dict[Node, Node]) -> bool:
    """True for an accumulator that is an output and is fused with what else reads it: it leaves as
    an activation, made for the output alone."""
    sums = node.target in PRODUCTS | SUMS | ADDITIVE and not _is_observed(node, roots)
    return sums and not all(map(ends_here, node.users))
