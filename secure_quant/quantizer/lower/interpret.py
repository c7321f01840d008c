"""Walks the converted graph once; each fx node becomes a Term, a Weight or a constant."""

from __future__ import annotations

import math
import operator
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.errors import UnsupportedModule
from secure_quant.ir import Graph, Interval, ops
from secure_quant.ir.build import Builder, short
from secure_quant.ir.lookups import digest_of
from secure_quant.ir.ports import id_digits
from secure_quant.ir.run_time import at_run_time
from secure_quant.ir.tables import Grid
from secure_quant.ir.terms import Term, Weight
from secure_quant.quantizer.kept.weights import kept_weight
from secure_quant.quantizer.lower.dynamic import feeds_only_layers
from secure_quant.quantizer.lower.unclipped import is_scaled, only_rounds, rounded
from secure_quant.quantizer.notes import CENTRING, UNROUNDED
from secure_quant.quantizer.opset import CONCAT, MONOTONE, OPS, SHAPING
from secure_quant.quantizer.ports import INPUT_PORT, LOOKUP_PORT, OUTPUT_PORTS, PORTS
from secure_quant.quantizer.refuse import module_path, unsupported

__all__ = ["Lowering"]

MOVES = SHAPING | MONOTONE
_SHORT_NAMES = {"max_pool2d": "pool", "avg_pool2d": "pool", "adaptive_avg_pool2d": "pool",
                "positions": "conv2d"}  # fmt: skip
aten = torch.ops.aten
_QUANTIZED = torch.ops.quantized_decomposed
MANY_ROUNDINGS = 24
NOT_ROUNDED = "round it before by QuantizeLinear or quantize_per_tensor; or give the float model"
_INVERSES = {aten.rsqrt.default, aten.reciprocal.default}
RESHAPED = {aten.reshape.default, aten.squeeze.dim, aten.unsqueeze.default}


@dataclass
class Lowering:
    """One walk. ``env`` holds what each fx node became."""

    module: GraphModule
    batch: int
    builder: Builder
    env: dict[Node, Any] = field(default_factory=dict)
    dynamic: bool = False
    kept: Tensor | None = None
    packed: str = ""
    """The Input that ports read."""

    @cached_property
    def rounds_once(self) -> bool:
        """Whether tables are made that round once (``ir.fit``): some bits of ring more, which costs
        the engine for one host most; under secret sharing such tables are ramps. Worth it where
        something divides by what it sums up, as LayerNorm and softmax do, and where errors of many
        layers add up: EfficientNet-Lite0 sees 96 of 100 photos as in float, and 91 without. A LeNet
        gains nothing."""
        nodes = list(self.module.graph.nodes)
        roundings = sum(
            node.target is _QUANTIZED.quantize_per_tensor.default or bool(node.meta.get(UNROUNDED))
            for node in nodes
        )  # what a sum takes unrounded is a layer as well
        return roundings > MANY_ROUNDINGS or any(node.target in _INVERSES for node in nodes)

    def run(self) -> Graph:
        for node in self.module.graph.nodes:
            if node.target is OUTPUT_PORTS:
                return self.builder.finish_ports(self._outputs(node))
            if node.op == "output":
                return self.builder.finish(self._result(node))
            self.env[node] = self._visit(node)
        raise UnsupportedModule("model", got="no output", expected="one tensor")

    def term(self, argument: Any, node: Node) -> Term:
        """The Term of an argument. Raises UnsupportedModule if it is a constant."""
        found = self.env.get(argument) if isinstance(argument, Node) else None
        if not isinstance(found, Term):
            raise unsupported(node, "an operand that does not depend on the input")
        return found

    def activation(self, argument: Any, node: Node) -> Term:
        """The integer activation of an argument."""
        term = self.term(argument, node)
        if not term.plain:
            hint = None if self.kept is None else NOT_ROUNDED
            raise unsupported(node, "an operand that was not quantized", hint)
        return term

    def layer_input(self, node: Node) -> Term:
        """What enters a layer with weights: int8, with a scale of its own in dynamic mode."""
        term = self.activation(node.args[0], node)
        return at_run_time(self.builder, term, f"{term.name}.int8") if self.dynamic else term

    def weight(self, node: Node) -> Weight | None:
        """What a layer's weight became; None where it is no parameter."""
        found = self.value(node.args[1])
        if self.kept is not None and isinstance(found, Tensor):
            return kept_weight(node, found, self.kept)
        return found if isinstance(found, Weight) else None

    def shape(self, node: Node) -> tuple[int, ...]:
        """Per-sample shape of what ``node`` makes. Raises UnsupportedModule if it mixes samples."""
        shape = tuple(node.meta["tensor_meta"].shape)
        if not shape or shape[0] != self.batch:
            raise unsupported(
                node, f"a result of shape {list(shape)}",
                "keep the batch axis first and alone in every step",
            )  # fmt: skip
        return shape[1:]

    def name(self, node: Node) -> str:
        """A short name: the module's path if a module made the node, else the op and its place."""
        return self.builder.name(self.label(node))

    @cached_property
    def _made_at(self) -> Counter[str]:
        """Values that nodes of a module's path make."""
        return Counter(module_path(n) for n in self.module.graph.nodes if self._makes_value(n))

    def label(self, node: Node) -> str:
        path = module_path(node)
        op = str(node.target).removeprefix("aten.").removeprefix("secure_quant.").split(".")[0]
        own = path and self._made_at[path] == self._makes_value(node)
        op = _SHORT_NAMES.get(op, op)
        return path if own else f"{path}.{op}" if path else op

    @staticmethod
    def _makes_value(node: Node) -> bool:
        return node.op == "call_function" and "quantized_decomposed" not in str(node.target)

    def value(self, argument: Any) -> Any:
        """What an argument became; None stays None."""
        return self.env[argument] if isinstance(argument, Node) else argument

    def _visit(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self._packed_input(node)
        if node.target in PORTS:
            return None  # its quantize node makes the value
        if node.op == "get_attr":
            return _attribute(self.module, str(node.target))
        if node.target in _SPECIAL:
            return _SPECIAL[node.target](self, node)
        terms = [n for n in node.all_input_nodes if isinstance(self.env.get(n), Term)]
        if not terms:
            if self.kept is not None and any(n.op == "placeholder" for n in node.all_input_nodes):
                raise unsupported(node, "an input that was not quantized", NOT_ROUNDED)
            return self._fold(node)
        op = OPS.get(node.target)
        if op is None:
            raise unsupported(node)
        return op.lower(self, node)

    def _fold(self, node: Node) -> Any:
        """The value of a node all of whose inputs are constants."""
        args = torch.fx.map_arg(node.args, self.value)
        kwargs = torch.fx.map_arg(node.kwargs, self.value)
        if node.op != "call_function" or any(isinstance(a, Term) for a in args):
            raise unsupported(node)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _packed_input(self, node: Node) -> None:
        """The Input, where ports read it; else its quantize node makes it."""
        if any(user.target in PORTS for user in node.users):
            self.packed = self.builder.add(
                ops.Input(name=self.builder.name("input"), shape=self.shape(node), scale=1.0,
                          zero_point=0)
            )  # fmt: skip

    def _outputs(self, node: Node) -> dict[str, Term]:
        """By name."""
        parts: Any = node.args[0]
        names = str(node.args[1]).split()
        return {name: self.term(part, node) for name, part in zip(names, parts, strict=True)}

    def _result(self, node: Node) -> Term:
        made = node.args[0]
        if isinstance(made, tuple | list):
            made = [n for n in made if n is not None]
            if len(made) != 1:
                raise UnsupportedModule("model", got=f"{len(made)} outputs", expected="one tensor")
            made = made[0]
        if not isinstance(made, Node) or not isinstance(self.env.get(made), Term):
            raise UnsupportedModule(
                "the model's output", got="a value that does not depend on the input",
                expected="one tensor computed from it",
            )  # fmt: skip
        return self.term(made, node)


def _attribute(module: GraphModule, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def _quantize(lowering: Lowering, node: Node) -> Term:
    """A quantize node: the Input if the model's input is quantized here, else a Requantize."""
    args: Any = node.args
    source, scale, zero_point, low, high = args[:5]
    grid = Grid(short(float(scale)), int(zero_point), int(low), int(high))
    if isinstance(source, Node) and source.target is INPUT_PORT:
        return _input_port(lowering, source, grid)
    if isinstance(source, Node) and source.target is LOOKUP_PORT:
        return _lookup_port(lowering, source, grid)
    if isinstance(source, Node) and source.op == "placeholder":
        shape = lowering.shape(source)
        name = lowering.builder.add(
            ops.Input(name=lowering.builder.name("input"), shape=shape, scale=grid.scale,
                      zero_point=grid.zero_point)
        )  # fmt: skip
        return Term(name, shape, Interval(grid.low, grid.high), grid.scale, grid.zero_point)
    term = lowering.term(source, node)
    if lowering.dynamic and term.accumulator and term.limits and feeds_only_layers(node):
        seen = grid.scale * max(grid.zero_point - grid.low, grid.high - grid.zero_point)
        return at_run_time(lowering.builder, term, f"{term.name}.q", seen)
    if lowering.kept is not None:
        return lowering.builder.requantize_kept(term, grid, f"{term.name}.q")
    if not lowering.dynamic and only_rounds(term, grid, node):
        return rounded(lowering.builder, term, grid, node)
    grid = _grid_of_mean(source, term, grid)
    steps = _grid_of_steps(lowering, node, grid)
    fixed = _shares(node) or not lowering.rounds_once
    made = lowering.builder.requantize(
        term, steps or grid, f"{term.name}.q", fixed=fixed, exact=_takes_sums(node),
        stairs=steps is not None,
    )  # fmt: skip
    if made.scale != args[1]:
        _rescale_nodes(node, made.scale)
    return made


def _input_port(lowering: Lowering, node: Node, grid: Grid) -> Term:
    _, name, dtype, start, _, _ = node.args
    shape = lowering.shape(node) or (1,)
    port: Any = ops.InputPort(
        name=lowering.builder.name(f"input.{name}"), inputs=(lowering.packed,), port=str(name),
        dtype=str(dtype), start=int(start), shape=shape, scale=grid.scale,  # type: ignore[arg-type]
        zero_point=grid.zero_point,
    )  # fmt: skip
    made = Interval(grid.low, grid.high)
    return Term(lowering.builder.add(port), shape, made, grid.scale, grid.zero_point)


def _lookup_port(lowering: Lowering, node: Node, grid: Grid) -> Term:
    """The table on the grid: public, and the client takes the rows, or secret."""
    _, weight, name, start, _, private = node.args
    real = lowering.value(weight).double().numpy()
    steps = np.rint(real / grid.scale) + grid.zero_point
    table = np.clip(steps, grid.low, grid.high).astype(np.int8)
    if private:
        return _embedding(lowering, node, table, grid)
    port: Any = ops.LookupPort(
        name=lowering.builder.name(f"input.{name}"), inputs=(lowering.packed,), port=str(name),
        dtype="int64", start=int(start), shape=lowering.shape(node),  # type: ignore[arg-type]
        scale=grid.scale, zero_point=grid.zero_point, rows=len(table), digest=digest_of(table),
    )  # fmt: skip
    lowering.builder.lookups[port.name] = table
    made = Interval(grid.low, grid.high)
    return Term(lowering.builder.add(port), port.shape, made, grid.scale, grid.zero_point)


def _embedding(lowering: Lowering, node: Node, table: NDArray[np.int8], grid: Grid) -> Term:
    """Rows of a secret table, by numbers that other tables may be read by too."""
    _, _, name, start, shape, _ = node.args
    ports = [n for n in lowering.builder.nodes if isinstance(n, ops.IdPort)]
    port: Any = next((n for n in ports if n.port == name), None)
    if port is None:
        port = ops.IdPort(
            name=lowering.builder.name(f"input.{name}"), inputs=(lowering.packed,), port=str(name),
            dtype="int64", start=int(start), shape=(*shape, id_digits(len(table))),  # type: ignore[arg-type,misc]
            scale=1.0, zero_point=0, rows=len(table),
        )  # fmt: skip
        lowering.builder.add(port)
    if port.rows != len(table):
        raise unsupported(
            node, f"a table of {len(table)} rows, by numbers that choose of {port.rows} elsewhere",
            "give both tables as many rows, or the numbers twice, under two names",
        )  # fmt: skip
    made: Any = ops.Embedding(
        name=lowering.builder.name(f"rows.{name}"), inputs=(port.name,), rows=len(table),
        width=table.shape[1], scale=grid.scale, zero_point=grid.zero_point,
    )  # fmt: skip
    lowering.builder.parameters[f"{made.name}.weight"] = table
    seen = Interval(grid.low, grid.high)
    return Term(lowering.builder.add(made), lowering.shape(node), seen, grid.scale, grid.zero_point)


def _grid_of_mean(source: Any, term: Term, grid: Grid) -> Grid:
    """Of a mean that is taken off the values themselves: its steps are whole units of these."""
    if not (source.target is aten.mean.dim and source.meta.get(CENTRING)):
        return grid
    unit = term.scale * source.args[0].meta["tensor_meta"].shape[-1]
    return replace(grid, scale=short(unit * max(math.ceil(grid.scale / unit - 1e-6), 1)))


def _grid_of_steps(lowering: Lowering, node: Node, grid: Grid) -> Grid | None:
    """Of what the maximum of scores is found in: its steps are 2^j of the scores' own, and 2^q of
    them are a ramp. None for other values."""
    for target in (_QUANTIZED.dequantize_per_tensor.default, aten.amax.default, aten.sub.Tensor):
        node = next(iter(node.users))
        if node.target is not target:
            return None
    scores = lowering.env.get(node.args[0])  # type: ignore[arg-type]
    if grid.low or grid.zero_point or not isinstance(scores, Term) or not scores.plain:
        return None
    scale = scores.scale * 2.0 ** max(math.ceil(math.log2(grid.scale / scores.scale) - 1e-6), 0)
    steps = math.ceil(grid.high * grid.scale / scale - 1e-6)
    return Grid(scale, 0, 0, 2 ** steps.bit_length() - 1)


def _takes_sums(node: Node) -> bool:
    """True where only products of two values read a value, and reshapes before them."""
    return bool(node.users) and all(
        len([n for n in user.all_input_nodes if n.op != "get_attr"]) == 2
        if user.target is aten.mul.Tensor
        else (is_scaled(user) or user.target in RESHAPED) and _takes_sums(user)
        for user in node.users
    )


def _shares(node: Node) -> bool:
    """True where other values are on the same grid: they are joined somewhere."""
    return any(
        user.target in CONCAT or ((is_scaled(user) or user.target in MOVES) and _shares(user))
        for user in node.users
    )


def _rescale_nodes(node: Node, scale: float) -> None:
    """torch's simulation rounds on the grid that the integers have."""
    for changed in (node, *(user for user in node.users if is_scaled(user))):
        changed.update_arg(1, scale)


def _dequantize(lowering: Lowering, node: Node) -> Any:
    return lowering.env[node.args[0]]  # type: ignore[index]


def _dequantize_weight(lowering: Lowering, node: Node) -> Weight:
    values, scales, _, axis = (lowering.value(a) for a in node.args[:4])
    if axis != 0:
        raise unsupported(node, f"weight channels along axis {axis}")
    return Weight.of(values.numpy(), scales.numpy())


def _getitem(lowering: Lowering, node: Node) -> Any:
    return lowering.env[node.args[0]][node.args[1]]  # type: ignore[index]


def _size(lowering: Lowering, node: Node) -> int:
    args: Any = node.args
    return int(args[0].meta["tensor_meta"].shape[args[1]])


_SPECIAL = {
    torch.ops.aten.sym_size.int: _size,
    _QUANTIZED.quantize_per_tensor.default: _quantize,
    _QUANTIZED.dequantize_per_tensor.default: _dequantize,
    _QUANTIZED.dequantize_per_channel.default: _dequantize_weight,
    operator.getitem: _getitem,
}
