"""RNN, LSTM, GRU and their cells, step by step: a length that is fixed is so many layers.

What enters a step and the state before it lie side by side, so that a gate is one linear layer and
its function that layer's table. A state that is all zeros at the start costs nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import Editor
from secure_quant.quantizer.passes.indexing import is_whole
from secure_quant.quantizer.refuse import unsupported

__all__ = ["PADDED", "lower_recurrent"]

aten = torch.ops.aten

_ZEROS = {aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default}
PADDED = "pad to one length; choose the last step at the client"
LONGEST = 512
"""Steps; each has its own copy of the weights."""


@dataclass(frozen=True)
class _State:
    """h, and c of an LSTM; None where it is zero."""

    h: Node | None
    c: Node | None = None


@dataclass(frozen=True)
class _Weights:
    """Of one layer in one direction; projection of an LSTM's h or None."""

    into: Node
    own: Node
    bias_into: Node | None
    bias_own: Node | None
    projection: Node | None = None

    @property
    def size(self) -> int:
        return int(self.own.meta["val"].shape[0])


_Step = Callable[["_Writer", _Weights, list[Node], _State], _State]


class _Writer(Editor):
    def gates(
        self, weights: _Weights, xs: list[Node], h: Node | None, *layers: Sequence[tuple[int, int]]
    ) -> list[Node]:
        """W x + U h + b: for each of ``layers`` the given ranges of its rows, as one layer."""
        matrix = self.joined([weights.into] if h is None else [weights.into, weights.own], 1)
        x = self.joined(xs if h is None else [*xs, h], -1)
        biases = [weights.bias_into, weights.bias_own]
        return [self.linear(x, matrix, biases, *rows) for rows in layers]

    def linear(
        self, x: Node, matrix: Node, biases: Sequence[Node | None], *rows: tuple[int, int]
    ) -> Node:
        """Ranges of the rows of a layer whose biases are added."""
        total: Node | None = None
        for bias in biases:
            if bias is not None:
                total = bias if total is None else self.call(aten.add.Tensor, total, bias)
        args = [self.rows(v, rows) for v in (matrix, total) if v is not None]
        return self.call(aten.linear.default, x, *args)

    def rows(self, x: Node, ranges: Sequence[tuple[int, int]]) -> Node:
        return self.joined([self.call(aten.slice.Tensor, x, 0, *each) for each in ranges], 0)

    def joined(self, parts: list[Node], axis: int) -> Node:
        return parts[0] if len(parts) == 1 else self.call(aten.cat.default, parts, axis)

    def part(self, x: Node, number: int, size: int) -> Node:
        """Of gates that lie in a row, the one of that number."""
        return self.call(aten.slice.Tensor, x, -1, number * size, (number + 1) * size)


def _rnn(function: Any) -> _Step:
    def step(edit: _Writer, w: _Weights, xs: list[Node], state: _State) -> _State:
        (made,) = edit.gates(w, xs, state.h, [(0, w.size)])
        return _State(edit.call(function, made))

    return step


def _lstm(edit: _Writer, w: _Weights, xs: list[Node], state: _State) -> _State:
    """c' = f · c + i · g, h' = o · tanh c'; rows i, f, g, o."""
    size = w.size // 4
    tanh = aten.tanh.default
    first = size if state.c is None else 2 * size
    rows = [(0, first), (3 * size, 4 * size)], [(2 * size, 3 * size)]
    gates, g = edit.gates(w, xs, state.h, *rows)
    gates = edit.call(aten.sigmoid.default, gates)
    c = edit.call(aten.mul.Tensor, edit.part(gates, 0, size), edit.call(tanh, g))
    if state.c is not None:
        kept = edit.call(aten.mul.Tensor, edit.part(gates, 1, size), state.c)
        c = edit.call(aten.add.Tensor, kept, c)
    output = edit.part(gates, first // size, size)
    h = edit.call(aten.mul.Tensor, output, edit.call(tanh, c))
    if w.projection is not None:
        h = edit.call(aten.linear.default, h, w.projection)
    return _State(h, c)


def _gru(edit: _Writer, w: _Weights, xs: list[Node], state: _State) -> _State:
    """n = tanh(W x + b + r · (U h + b')), h' = n + z · (h - n); rows r, z, n."""
    size = w.size // 3
    last = (2 * size, 3 * size)
    (gates,) = edit.gates(w, xs, state.h, [(0, 2 * size)])
    gates = edit.call(aten.sigmoid.default, gates)
    r, z = edit.part(gates, 0, size), edit.part(gates, 1, size)
    inner = edit.linear(edit.joined(xs, -1), w.into, [w.bias_into], last)
    own: Node | None = None
    if state.h is not None:
        own = edit.linear(state.h, w.own, [w.bias_own], last)
    elif w.bias_own is not None:
        own = edit.rows(w.bias_own, [last])
    if own is not None:
        inner = edit.call(aten.add.Tensor, inner, edit.call(aten.mul.Tensor, r, own))
    n = edit.call(aten.tanh.default, inner)
    if state.h is None:
        return _State(edit.call(aten.mul.Tensor, n, edit.call(aten.rsub.Scalar, z, 1.0)))
    apart = edit.call(aten.sub.Tensor, state.h, n)
    return _State(edit.call(aten.add.Tensor, n, edit.call(aten.mul.Tensor, z, apart)))


_LAYERS: dict[Any, _Step] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _gru,
    aten.rnn_tanh.input: _rnn(aten.tanh.default),
    aten.rnn_relu.input: _rnn(aten.relu.default),
}
_CELLS: dict[Any, _Step] = {
    aten.lstm_cell.default: _lstm,
    aten.gru_cell.default: _gru,
    aten.rnn_tanh_cell.default: _rnn(aten.tanh.default),
    aten.rnn_relu_cell.default: _rnn(aten.relu.default),
}


def lower_recurrent(module: GraphModule, batch: int) -> None:
    """Every recurrent layer and cell, in place. ``batch``: samples in the example that the graph
    was captured with. Raises UnsupportedModule for sequences too long, packed ones or along the
    batch, and dropout that stays on."""
    for node in list(module.graph.nodes):
        if node.target in _LAYERS:
            _refuse_batch_as_steps(node, batch)
            _unrolled(_Writer(module, node), module, node)
        elif node.target in _CELLS:
            _cell(_Writer(module, node), module, node)
        elif node.target in (aten.lstm.data, aten.gru.data, aten.rnn_tanh.data):
            raise unsupported(node, "a packed sequence", PADDED)
    module.graph.eliminate_dead_code()
    module.recompile()


def _refuse_batch_as_steps(node: Node, batch: int) -> None:
    """Raise UnsupportedModule where the samples would be the steps of one sequence."""
    given = _given(node)
    shape = list(given["input"].meta["val"].shape)
    if len(shape) != 3 or given["batch_first"]:
        return
    first, second = (not isinstance(size, int) or size == batch for size in shape[:2])
    if first and not second:
        raise unsupported(
            node, "samples as the steps of a sequence: its first axis is the batch",
            "build it with batch_first=True, or give it x.transpose(0, 1)",
        )  # fmt: skip


def _given(node: Node) -> dict[str, Any]:
    target: Any = node.target
    names = [a.name for a in target._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _cell(edit: _Writer, module: GraphModule, node: Node) -> None:
    given = _given(node)
    hx: Any = given["hx"]
    weights = _Weights(given["w_ih"], given["w_hh"], given.get("b_ih"), given.get("b_hh"))
    states = [_unless_zero(n) for n in (hx if isinstance(hx, list | tuple) else [hx])]
    made = _CELLS[node.target](edit, weights, [given["input"]], _State(*states))
    if node.target is aten.lstm_cell.default:
        _hand_out(module, node, [made.h, made.c])
    else:
        assert made.h is not None  # noqa: S101  a step makes one
        edit.replace(made.h)


def _unless_zero(node: Node) -> Node | None:
    return None if node.target in _ZEROS else node


def _unrolled(edit: _Writer, module: GraphModule, node: Node) -> None:
    given = _given(node)
    x: Any = given["input"]
    if x.meta["val"].ndim != 3:
        raise unsupported(node, "a sequence without a batch axis", "batch first")
    if given["train"] and given["dropout"]:
        raise unsupported(node, "dropout that stays on in eval mode", "call eval() on it")
    if not given["batch_first"]:
        x = edit.call(aten.transpose.int, x, 0, 1)
    length = x.meta["val"].shape[1]
    if not isinstance(length, int) or length > LONGEST:
        raise unsupported(
            node, f"a sequence of {length} steps", f"a fixed length of at most {LONGEST}"
        )
    steps = [[edit.call(aten.select.int, x, 1, t)] for t in range(length)]
    ends: list[_State] = []
    directions = 2 if given["bidirectional"] else 1
    per_layer = _weights(node, given)
    for layer in range(given["num_layers"]):
        made: list[list[Node]] = [[] for _ in steps]
        for way in range(directions):
            state = _start(edit, node, given, len(ends))
            order = range(length) if way == 0 else reversed(range(length))
            for t in order:
                weights = per_layer[layer * directions + way]
                state = _LAYERS[node.target](edit, weights, steps[t], state)
                assert state.h is not None  # noqa: S101  a step makes one
                made[t].append(state.h)
            ends.append(state)
        steps = made
    _outputs(edit, module, node, steps, ends, batch_first=given["batch_first"])


def _weights(node: Node, given: dict[str, Any]) -> list[_Weights]:
    """Of each layer and direction, in torch's order."""
    flat, biases = list(given["params"]), given["has_biases"]
    count = given["num_layers"] * (2 if given["bidirectional"] else 1)
    each = len(flat) // count
    made = []
    for number in range(count):
        into, own, *rest = flat[number * each : (number + 1) * each]
        pair = rest[:2] if biases else [None, None]
        projection = rest[2 if biases else 0 :]
        made.append(_Weights(into, own, *pair, *projection))
    return made


def _start(edit: _Writer, node: Node, given: dict[str, Any], number: int) -> _State:
    """The state before the first step of layer and direction ``number``: [layers, batch, size]."""
    hx = given["hx"]
    states = []
    for source in hx if isinstance(hx, list | tuple) else [hx]:
        zero = _unless_zero(source) is None
        states.append(None if zero else edit.call(aten.select.int, source, 0, number))
    return _State(*states)


def _outputs(
    edit: _Writer, module: GraphModule, node: Node, steps: list[list[Node]], ends: list[_State],
    *, batch_first: bool,
) -> None:  # fmt: skip
    """Hand out what the readers of ``node`` take: all steps, the last states, or one of them."""

    def whole(own: _Writer, which: int) -> Node:
        if which == 0:
            return _sequence(own, steps, batch_first=batch_first)
        states = [end.h if which == 1 else end.c for end in ends]
        stacked = own.call(aten.stack.default, states, 1)
        return own.call(aten.transpose.int, stacked, 0, 1)

    def single(own: _Writer, which: int, number: int) -> Any:
        if which == 0:
            return own.joined(steps[number], -1)
        return ends[number].h if which == 1 else ends[number].c

    for part in list(node.users):
        if part.target is not operator.getitem:
            raise unsupported(node, "its outputs as one tuple", "return one tensor")
        which = int(part.args[1])  # type: ignore[arg-type]
        axis = 1 if which == 0 and batch_first else 0
        for reader in list(part.users):
            _pick(module, reader, axis, lambda own, n, which=which: single(own, which, n))
        if part.users:
            part.replace_all_uses_with(whole(_Writer(module, part), which))
        module.graph.erase_node(part)
    module.graph.erase_node(node)


def _pick(module: GraphModule, reader: Node, axis: int, single: Any) -> None:
    """What takes one step of all, behind slices that take the whole batch, reads that step."""
    args: Any = reader.args
    if reader.target is aten.slice.Tensor and (args[1:2] or (0,))[0] == 0 and axis == 1:
        start, stop = args[2:4] if len(args) > 3 else (0, None)
        if is_whole(start, stop, args[0].meta["val"].shape[0]):
            for deeper in list(reader.users):
                _pick(module, deeper, axis, single)
            reader.replace_all_uses_with(args[0])
            module.graph.erase_node(reader)
    elif reader.target is aten.select.int and args[1] % 3 == axis:
        own = _Writer(module, reader)
        own.replace(single(own, args[2]))


def _sequence(edit: _Writer, steps: list[list[Node]], *, batch_first: bool) -> Node:
    """All steps on one grid."""
    flat = edit.joined([part for parts in steps for part in parts], -1)
    batch = edit.call(aten.sym_size.int, flat, 0)
    made = edit.call(aten.reshape.default, flat, [batch, len(steps), -1])
    return made if batch_first else edit.call(aten.transpose.int, made, 0, 1)


def _hand_out(module: GraphModule, node: Node, values: list[Any]) -> None:
    for part in list(node.users):
        part.replace_all_uses_with(values[int(part.args[1])])  # type: ignore[arg-type]
        module.graph.erase_node(part)
    module.graph.erase_node(node)
