"""Small graphs with random weights, built node by node."""

from __future__ import annotations

from typing import Any

import numpy as np

from secure_quant.ir import Graph, ops
from secure_quant.ir.values import Interval
from secure_quant.ir.verify import linear_bound, public_bound

RELU = tuple(np.clip(np.arange(256) - 128, -128, 127).tolist())


class Builder:
    """Adds nodes one after the other; every accumulator gets the scale 1."""

    def __init__(self, shape: tuple[int, ...], zero_point: int = 0, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[ops.Node] = [
            ops.Input(name="x", shape=shape, scale=1.0, zero_point=zero_point)
        ]
        self.parameters: dict[str, Any] = {}
        self.centred = {"x": Interval(-128 - zero_point, 127 - zero_point)}

    def add(self, node: ops.Node, centred: Interval | None = None) -> str:
        self.nodes.append(node)
        self.centred[node.name] = centred or self.centred[node.inputs[0]]
        return node.name

    def _parameters(self, name: str, x: str, *shape: int) -> int:
        weight = self.rng.integers(-127, 128, shape).astype(np.int8)
        bias = self.rng.integers(-2000, 2000, shape[0]).astype(np.int32)
        self.parameters |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return public_bound(linear_bound(weight, bias, self.centred[x]))

    def linear(self, name: str, x: str, inputs: int, outputs: int) -> str:
        bound = self._parameters(name, x, outputs, inputs)
        node = ops.Linear(
            name=name, inputs=(x,), in_features=inputs, out_features=outputs, bias=True,
            bound=bound, scale=1.0,
        )  # fmt: skip
        return self.add(node, Interval(-bound, bound))

    def conv(
        self, name: str, x: str, channels: int, outputs: int, kernel: Any, stride: Any = (1, 1),
        padding: Any = (0, 0), dilation: Any = (1, 1), groups: int = 1,
    ) -> str:  # fmt: skip
        bound = self._parameters(name, x, outputs, channels // groups, *kernel)
        node = ops.Conv2d(
            name=name, inputs=(x,), in_channels=channels, out_channels=outputs, kernel=kernel,
            stride=stride, padding=padding, dilation=dilation, groups=groups, bias=True,
            bound=bound, scale=1.0,
        )  # fmt: skip
        return self.add(node, Interval(-bound, bound))

    def requantize(
        self, name: str, x: str, *, multiplier: Any = (1,), axis: int = 0, shift: int = 8,
        offset: int = 0, table: Any = RELU, zero_point: int = -128,
    ) -> str:  # fmt: skip
        node = ops.Requantize(
            name=name, inputs=(x,), multiplier=multiplier, axis=axis, offset=offset, shift=shift,
            table=table, scale=1.0, zero_point=zero_point,
        )  # fmt: skip
        return self.add(node, Interval(min(table) - zero_point, max(table) - zero_point))

    def pool(self, name: str, x: str, kernel: Any = (2, 2), stride: Any = (2, 2)) -> str:
        node = ops.MaxPool(name=name, inputs=(x,), kernel=kernel, stride=stride, padding=(0, 0))
        return self.add(node)

    def graph(self, last: str) -> Graph:
        self.nodes.append(ops.Output(name="y", inputs=(last,), scale=1.0))
        return Graph(tuple(self.nodes), self.parameters)


def lenet() -> Graph:
    """3×32×32 -> 10: two convolutions with ReLU and pool, three linear layers."""
    b = Builder((3, 32, 32), seed=1)
    x = b.requantize("r1", b.conv("c1", "x", 3, 6, (5, 5)), shift=9)
    x = b.requantize("r2", b.conv("c2", b.pool("p1", x), 6, 16, (5, 5)), shift=9)
    x = b.add(ops.Reshape(name="flat", inputs=(b.pool("p2", x),), shape=(400,)))
    x = b.requantize("r3", b.linear("f1", x, 400, 120), shift=10)
    x = b.requantize("r4", b.linear("f2", x, 120, 84), shift=9)
    return b.graph(b.linear("f3", x, 84, 10))


def mlp() -> Graph:
    b = Builder((64,), seed=2)
    x = b.requantize("r", b.linear("f1", "x", 64, 128), shift=9)
    return b.graph(b.linear("f2", x, 128, 10))


def single() -> Graph:
    b = Builder((32,), zero_point=5)
    return b.graph(b.linear("f", "x", 32, 8))


def identity() -> Graph:
    return Builder((3, 2), zero_point=-7).graph("x")


def activation_out() -> Graph:
    """The Output reads an activation through a Reshape; one wire has several readers."""
    b = Builder((2, 6, 6), zero_point=3)
    c = b.conv("c", "x", 2, 4, (3, 3), (2, 1), (1, 2), (1, 2), groups=2)
    x = b.requantize("r", c, multiplier=(3, 255, 16, 7), shift=13, table=RELU[:200])
    # The accumulator is read twice, by tables of other scale.
    z = b.requantize("t", c, multiplier=(5,), shift=11, offset=99 << 11, zero_point=1)
    moved = b.add(ops.Transpose(name="turn", inputs=(z,), permutation=(0, 1, 2)))
    both = b.add(
        ops.Add(name="sum", inputs=(x, moved), factors=(3, -2), bound=3000, scale=1.0),
        Interval(-3000, 3000),
    )
    w = b.requantize("w", both, shift=4, offset=2000)
    cut = b.add(ops.Slice(name="cut", inputs=(w,), axis=1, start=0, stop=3, step=2))
    join = b.add(ops.Concat(name="join", inputs=(cut, cut), axis=1))
    return b.graph(b.add(ops.Reshape(name="flat", inputs=(join,), shape=(4 * 4 * 6,))))


def attention() -> Graph:
    """Parallel q, k, v; products of secrets, sums, maxima, an int16 wire, direct tables."""
    b = Builder((4, 8), zero_point=2)
    heads = []
    for name in "qkv":
        r = b.requantize(f"{name}r", b.linear(name, "x", 8, 8), axis=-1, shift=8, offset=1 << 15,
                         zero_point=0)  # fmt: skip
        heads.append(b.add(ops.Reshape(name=f"{name}h", inputs=(r,), shape=(2, 4, 4))))
    bound = 4 * 128 * 128
    scores = ops.MatMul(
        name="s", inputs=(heads[0], heads[1]), transpose_b=True, bound=bound, scale=1.0
    )
    b.add(scores, Interval(-bound, bound))
    s = b.requantize("sr", "s", axis=-1, shift=8, offset=128 << 8, zero_point=0)
    top = b.add(ops.ReduceMax(name="top", inputs=(s,)))
    d = b.add(ops.Add(name="d", inputs=(s, top), factors=(1, -1), bound=255, scale=1.0),
              Interval(-255, 255))  # fmt: skip
    exp = tuple(np.rint(4000 * np.exp((np.arange(256) - 255) / 60)).astype(int).tolist())
    e = b.requantize("e", d, axis=-1, shift=0, offset=255, table=exp, zero_point=0)
    most = b.add(ops.ReduceMax(name="most", inputs=(e,)))  # of an int16 wire
    gap = ops.Add(name="gap", inputs=(e, most), factors=(2, -1), bound=8000, scale=1.0)
    b.add(gap, Interval(-8000, 8000))
    e = b.requantize(
        "e2", "gap", axis=-1, shift=0, offset=0, table=tuple(range(4001)), zero_point=0
    )
    total = ops.ReduceSum(name="n", inputs=(e,), bound=16004, scale=1.0)
    b.add(total, Interval(0, 16004))
    inverse = tuple(np.clip(100000 // (np.arange(512) * 32 + 1), 0, 127).tolist())
    n = b.requantize("nr", "n", axis=-1, shift=5, table=inverse, zero_point=0)
    p = b.add(ops.Mul(name="p", inputs=(e, n), bound=4001 * 127, scale=1.0),
              Interval(-4001 * 127, 4001 * 127))  # fmt: skip
    p = b.requantize("pr", p, axis=-1, shift=11, offset=128 << 11, zero_point=0)
    o = ops.MatMul(name="o", inputs=(p, heads[2]), transpose_b=False, bound=bound, scale=1.0)
    return b.graph(b.add(o, Interval(-bound, bound)))


def average() -> Graph:
    """A sum pool read by a table and, as an accumulator, by the Output."""
    b = Builder((2, 5, 5), zero_point=-3)
    x = b.requantize("r", b.conv("c", "x", 2, 3, (2, 2), padding=(1, 1)), shift=8)
    node = ops.SumPool(
        name="s", inputs=(x,), kernel=(3, 2), stride=(2, 1), padding=(1, 1), bound=2000, scale=1.0
    )
    return b.graph(b.add(node, Interval(-2000, 2000)))


def square() -> Graph:
    """A product of a wire with itself leaves as shares."""
    b = Builder((6,))
    x = b.linear("f", "x", 6, 5)
    r = b.requantize("r", x, axis=-1, shift=7, offset=1 << 14, zero_point=0)
    m = ops.Mul(name="m", inputs=(r, r), bound=128 * 128, scale=1.0)
    return b.graph(b.add(m, Interval(0, 128 * 128)))


ALL = {
    make.__name__: make
    for make in (lenet, mlp, single, identity, activation_out, attention, average, square)
}
