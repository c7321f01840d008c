"""Every rule of the verifier: what it infers, and each way a graph is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from unit.ir.nodes import binary, conv, end, linear, pool, requantize, src

from conformance import cases
from secure_quant.errors import InvalidGraph, OverflowRisk
from secure_quant.ir import Graph, ops
from secure_quant.ir.verify import MAX_TABLE


def public(*nodes: ops.Node) -> Graph:
    return Graph(nodes, commitment=bytes(32))


def refused(match: str, *nodes: ops.Node, error=InvalidGraph) -> None:
    with pytest.raises(error, match=match):
        public(*nodes)


PICTURE = src((2, 5, 5))
LONG = "x" * 201


STRUCTURE = {
    "number of nodes": [[], [src()]],
    "Input first only": [[src(), src(name="z"), end("z")]],
    "Output last only": [[src(), requantize()], [src(), end("x", name="o"), end("x")]],
    "one not yet taken": [[src(), requantize(name="x"), end("x")]],
    "the name of an earlier node": [
        [src(), end("z")],
        [end("x"), end("y")],
        [src(), requantize(inputs=("q",)), end("q")],
        [src(), requantize(inputs=("y",)), end("q")],
    ],
    "nothing reads": [[src(), requantize(), end("x")]],
    ": inputs": [
        [src(), requantize(inputs=("x", "x")), end("q")],
        [src(), requantize(inputs=()), end("q")],
        [src(), binary(ops.Add, inputs=("x",)), end("b")],
        [src(), ops.Concat(name="k", inputs=(), axis=0), end("x")],
        [src(inputs=("x",)), end("x")],
    ],
    r"Input\.name": [[src(name=n), end(n)] for n in ("", "a b", "ä", "a\n", LONG)],
    r"Input\.name: got int": [[src(name=3), end("x")]],
    r"Input\.shape": [
        [src(shape=s), end("x")] for s in ([4], (4.0,), (True,), (2**62,), 4, (np.int64(4),))
    ],
    r"Input\.scale": [[src(scale=s), end("x")] for s in (float("nan"), float("inf"), 1, "1")],
    r"Input\.zero_point": [[src(zero_point=z), end("x")] for z in (True, 0.0, np.int8(3), None)],
    r"Linear\.bias": [[src(), linear(bias=1), end("fc")]],
    r"MaxPool\.kernel": [[PICTURE, pool(kernel=k), end("p")] for k in ((2,), (2, 2, 2), [2, 2])],
}


@pytest.mark.parametrize(
    ("match", "nodes"), [(match, nodes) for match, many in STRUCTURE.items() for nodes in many]
)
def test_structure_and_types(match, nodes):
    refused(match, *nodes)


def test_an_unknown_op():
    class Strange(ops.ReduceMax):
        pass

    refused("op: got Strange", src(), Strange(name="s", inputs=("x",)), end("s"))


RULES = {
    "zero point": [
        [src(zero_point=128), end("x")], [src(zero_point=-129), end("x")],
        [src(), requantize(zero_point=128), end("q")],
        [src(), requantize(table=(0, 300), zero_point=2**15), end("q")],
    ],
    "Input 'x': scale": [
        [src(scale=s), end("x")] for s in (0.0, -1.0, 2.0**-121, 2.0**65, 5e-324)
    ],
    "Output 'y': scale": [[src(), end("x", scale=0.0)]],
    "rank": [[src(()), end("x")], [src((1,) * 7), end("x")]],
    "Input 'x': shape": [[src((0,)), end("x")], [src((-2, -2)), end("x")]],
    "Input 'x': elements": [[src((2**14, 2**13)), end("x")], [src((2**48,) * 6), end("x")]],
    "features": [[src(), linear(in_features=5), end("fc")]],
    "out_features": [[src(), linear(out_features=n), end("fc")] for n in (0, -2)],
    "an activation: Requantize": [
        [src(), binary(ops.Add, bound=256), linear(inputs=("b",)), end("fc")],
        [src(), binary(ops.Add, bound=256), ops.ReduceMax(name="m", inputs=("b",)), end("m")],
        [src(), linear(out_features=4), linear(name="g", inputs=("fc",)), end("g")],
        [src(), linear(), ops.ReduceMax(name="m", inputs=("fc",)), end("m")],
        [src(), linear(), ops.Slice(name="m", inputs=("fc",), axis=0, start=0, stop=1), end("m")],
        [src(), linear(), ops.Concat(name="m", inputs=("fc", "fc"), axis=0), end("m")],
        [PICTURE, conv(), pool(inputs=("c",)), end("p")],
        [PICTURE, conv(), pool(ops.SumPool, inputs=("c",)), end("p")],
        [PICTURE, conv(), conv(name="d", inputs=("c",)), end("d")],
    ],
    "a sum or product: Requantize": [
        [src(), linear(), ops.Reshape(name="m", inputs=("fc",), shape=(2,)), end("m")],
        [src(), linear(), ops.Transpose(name="m", inputs=("fc",), permutation=(0,)), end("m")],
        *(
            [src(), linear(), binary(ops.Add, inputs=("fc", "fc")), reader, end("m")]
            for reader in (
                ops.Reshape(name="m", inputs=("b",), shape=(2,)),
                ops.Transpose(name="m", inputs=("b",), permutation=(0,)),
                binary(ops.Mul, name="m", inputs=("b", "b")),
                binary(ops.MatMul, name="m", inputs=("b", "b")),
                ops.ReduceSum(name="m", inputs=("b",), bound=9, scale=1.0),
            )
        ),
        [src(), linear(), binary(ops.Mul, inputs=("fc", "fc")), end("b")],
        [src((4, 4)), linear(), binary(ops.MatMul, inputs=("fc", "fc")), end("b")],
        [src(), linear(), ops.ReduceSum(name="m", inputs=("fc",), bound=9, scale=1.0), end("m")],
    ],
    "a sum with a layer's accumulator": [
        [src(), linear(), binary(ops.Add, inputs=("fc", "fc")), end("b")],
        [src(), linear(), binary(ops.Add, inputs=("fc", "fc")),
         binary(ops.Add, name="m", inputs=("b", "fc"), bound=2**22), end("m")],
    ],
    "'b': axis": [[src(), binary(ops.Add, axis=axis), end("b")] for axis in (1, -2)],
    "input shape": [[src(), pool(), end("p")], [src((2, 5)), conv(), end("c")]],
    "kernel": [[PICTURE, conv(kernel=(0, 3)), end("c")], [PICTURE, pool(kernel=(2, -1)), end("p")]],
    "stride": [[PICTURE, conv(stride=(0, 1)), end("c")], [PICTURE, pool(stride=(1, -1)), end("p")]],
    "padding": [
        [PICTURE, conv(padding=(-1, 0)), end("c")],
        [PICTURE, pool(padding=(2, 0)), end("p")],
        [PICTURE, pool(kernel=(3, 3), padding=(1, 2)), end("p")],
    ],
    "dilation": [[PICTURE, conv(dilation=(0, 1)), end("c")]],
    "must fit": [
        [PICTURE, conv(kernel=(6, 1)), end("c")], [PICTURE, conv(dilation=(3, 1)), end("c")],
        [PICTURE, pool(kernel=(1, 6)), end("p")],
    ],
    "channels": [[PICTURE, conv(in_channels=3), end("c")]],
    "factors": [
        [src(), binary(ops.Add, factors=factors), end("b")]
        for factors in ((), (1,), (1, 2, 3), (1,) * 6, (1,) * 7)
    ] + [[src((2, 3)), binary(ops.Add, factors=(1,) * 6, axis=0), end("b")]],
    "out_channels": [[PICTURE, conv(out_channels=0), end("c")]],
    "groups": [[PICTURE, conv(groups=g), end("c")] for g in (0, -1, 3, 4)]
    + [[PICTURE, conv(groups=2, out_channels=3), end("c")]],
    "elements with padding": [
        [PICTURE, conv(padding=(2**40, 0), stride=(2**40, 1)), end("c")],
        [PICTURE, pool(kernel=(2**40, 2), padding=(2**39, 0), stride=(2**40, 1)), end("p")],
    ],
    "elements of windows": [
        [src((1, 4096, 4096)), conv(in_channels=1, kernel=(2048, 2048), stride=(8, 8)), end("c")],
        [src((1, 4096, 4096)), pool(kernel=(2048, 2048), stride=(1, 1)), end("p")],
    ],
    "ranks": [
        [src(), binary(ops.MatMul), end("b")],
        [src((2, 2)), ops.Reshape(name="r", inputs=("x",), shape=(1, 2, 2)),
         binary(ops.MatMul, inputs=("x", "r")), end("b")],
    ],
    "leading axes": [
        [src((2, 3, 4)), ops.Slice(name="s", inputs=("x",), axis=0, start=0, stop=1),
         binary(ops.MatMul, inputs=("x", "s")), end("b")],
    ],
    "inner axis": [[src((2, 3)), binary(ops.MatMul, transpose_b=False), end("b")]],
    "second shape": [
        [src((2, 3)), ops.Transpose(name="t", inputs=("x",), permutation=(1, 0)),
         binary(op, inputs=("x", "t")), end("b")]
        for op in (ops.Add, ops.Mul)
    ] + [
        [src((2, 3)), ops.Slice(name="s", inputs=("x",), axis=0, start=0, stop=1),
         binary(ops.Add, inputs=("s", "x")), end("b")],
        [src((1, 3)), ops.Reshape(name="r", inputs=("x",), shape=(3,)),
         binary(ops.Mul, inputs=("x", "r")), end("b")],
    ],
    "axis": [
        [src(), requantize(axis=1), end("q")], [src(), requantize(axis=-2), end("q")],
        [src(), end("x", axis=1)],
        [src(), ops.Slice(name="s", inputs=("x",), axis=-1, start=0, stop=1), end("s")],
        [src(), ops.Concat(name="k", inputs=("x", "x"), axis=1), end("k")],
    ],
    "multipliers": [
        [src(), requantize(multiplier=(1, 2)), end("q")],
        [src(), requantize(multiplier=()), end("q")],
        [src(), linear(), end("fc", multiplier=(1, 2, 3))],
    ],
    "multiplier": [
        [src(), requantize(multiplier=(0,)), end("q")],
        [src(), requantize(multiplier=(256,)), end("q")],
        [src(), end("x", multiplier=(2,))], [src(), end("x", multiplier=(1, 1, 1, 1))],
    ],
    "table": [
        [src(), requantize(table=()), end("q")], [src(), requantize(table=(1,)), end("q")],
        [src(), requantize(table=(1,) * (MAX_TABLE + 1)), end("q")],
    ],
    "table entries": [
        [src(), requantize(table=(0, 2**15)), end("q")],
        [src(), requantize(table=(0, -(2**15) - 1)), end("q")],
    ],
    "shift": [[src(), requantize(shift=s), end("q")] for s in (-1, 60)],
    "'r': shape": [
        [src(), ops.Reshape(name="r", inputs=("x",), shape=s), end("r")]
        for s in ((3,), (2, 3), (-2, -2))
    ],
    "'r': rank": [
        [src((1,)), ops.Reshape(name="r", inputs=("x",), shape=()), end("r")],
        [src((1,)), ops.Reshape(name="r", inputs=("x",), shape=(2**48,) * 100_000), end("r")],
    ],
    "permutation": [
        [src((2, 3)), ops.Transpose(name="t", inputs=("x",), permutation=p), end("t")]
        for p in ((0,), (0, 0), (1, 2), (-1, 0), (0, 1, 2))
    ],
    "slice": [
        [src(), ops.Slice(name="s", inputs=("x",), axis=0, start=a, stop=b, step=c), end("s")]
        for a, b, c in ((-1, 2, 1), (2, 2, 1), (0, 5, 1), (0, 4, 0), (3, 0, -1))
    ],
    "index": [
        [src(), ops.Gather(name="s", inputs=("x",), axis=0, index=i), end("s")]
        for i in ((), (-1,), (4,), (0, 2**31))
    ],
    "scale and zero point": [
        [src(), requantize(scale=2.0), ops.Concat(name="k", inputs=("x", "q"), axis=0), end("k")],
        [src(), requantize(zero_point=1),
         ops.Concat(name="k", inputs=("x", "q"), axis=0), end("k")],
    ],
    "but for the axis": [
        [src((2, 3)), ops.Transpose(name="t", inputs=("x",), permutation=(1, 0)),
         ops.Concat(name="k", inputs=("x", "t"), axis=0), end("k")],
        [src((2, 3)), ops.Reshape(name="r", inputs=("x",), shape=(2, 3, 1)),
         ops.Concat(name="k", inputs=("x", "r"), axis=0), end("k")],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("match", "nodes"), [(match, nodes) for match, many in RULES.items() for nodes in many]
)
def test_rules(match, nodes):
    refused(match, *nodes)


OVERFLOWS = [
    [src(), linear(bound=0), end("fc")],
    [src(), linear(bound=-1), end("fc")],
    [src(), linear(bound=2**31), end("fc")],
    [src((3, 4)), binary(ops.MatMul, bound=128 * 128 * 4 - 1), end("b")],
    [src(), binary(ops.Mul, bound=128 * 128 - 1), end("b")],
    [src(), binary(ops.Add, factors=(3, -2), bound=128 * 3 + 127 * 2 - 1), end("b")],
    [src(), binary(ops.Add, factors=(2**30, 0)), end("b")],
    [
        src(),
        binary(ops.Add, factors=(3, 1, 1, 1, -2, 0, 2, 2), bound=128 * 3 + 127 * 2 - 1),
        end("b"),
    ],
    [PICTURE, pool(ops.SumPool, bound=4 * 128 - 1), end("p")],
    [src(), ops.ReduceSum(name="s", inputs=("x",), bound=4 * 128 - 1, scale=1.0), end("s")],
    [src(), requantize(offset=2**60), end("q")],
    [src(), requantize(offset=-(2**60)), end("q")],
    [
        src(),
        binary(ops.Add, bound=256),
        ops.ReduceSum(name="s", inputs=("b",), bound=1023, scale=1.0),
        end("s"),
    ],
]


@pytest.mark.parametrize("nodes", OVERFLOWS)
def test_overflows_are_refused(nodes):
    refused("bound|offset", *nodes, error=OverflowRisk)


def test_an_answer_stays_in_what_float64_holds():
    nodes = [src(), binary(ops.Add, factors=(2**41, 0), bound=2**48)]
    refused("largest input times multiplier", *nodes, end("b", multiplier=(33,)))
    public(*nodes, end("b", multiplier=(32,)))


def test_bounds_count_by_channel():
    """Of squares and sums behind factors by channel: one large channel is not all of them."""
    row = binary(ops.Add, factors=(1, 1, 1, 100, 0, 0, 0, 0), bound=12800)
    one = ops.Reshape(name="r", inputs=("b",), shape=(1, 4))
    least = 128**2 * 3 + 12800**2
    square = ops.MatMul(name="m", inputs=("r", "r"), transpose_b=True, bound=least, scale=1.0)
    total = ops.ReduceSum(name="m", inputs=("b",), bound=128 * 3 + 12800, scale=1.0)
    for node, middle in ((square, [one]), (total, [])):
        nodes = [src(), row, *middle]
        public(*nodes, node, end("m"))
        less = dataclasses.replace(node, bound=node.bound - 1)
        refused("bound", *nodes, less, end("m"), error=OverflowRisk)


@pytest.mark.parametrize("place", [3, 4, 5, 7, 8, 9])
def test_one_less_is_the_least_bound(place):
    """The graphs above with a bound one larger are taken."""
    nodes = list(OVERFLOWS[place])
    nodes[1] = dataclasses.replace(nodes[1], bound=nodes[1].bound + 1)
    assert public(*nodes).values[nodes[1].name].range.hi == nodes[1].bound


def test_the_total_of_all_values_is_bounded():
    big = src((2**13, 2**13))
    nodes = [
        ops.Transpose(name=f"t{i}", inputs=(f"t{i - 1}" if i else "x",), permutation=(1, 0))
        for i in range(16)
    ]
    refused("elements in all", big, *nodes, end("t15"))
    assert public(big, *nodes[:14], end("t13")).values["t13"].size == 2**26


@pytest.mark.parametrize("build", cases.NAMED)
def test_a_public_graph_has_the_same_values(build):
    graph = build()
    assert dict(graph.public().values) == dict(graph.values)


def test_parameters_must_be_those_the_nodes_declare():
    weight = np.zeros((2, 4), np.int8)
    bad = [
        {"fc.weight": weight.astype(np.int16)}, {"fc.weight": weight[:, :3]},
        {"fc.weight": weight, "fc.bias": np.zeros(2, np.int32)}, {"other": weight},
        {"fc.weight": weight.astype(object)}, {"fc.weight": weight.reshape(4, 2)},
    ]  # fmt: skip
    for parameters in bad:
        with pytest.raises(InvalidGraph, match="parameters"):
            Graph((src(), linear(), end("fc")), parameters)
    with pytest.raises(InvalidGraph, match="parameters"):
        Graph((src(), linear(bias=True), end("fc")), {"fc.weight": weight})
    with pytest.raises(InvalidGraph, match="parameters"):
        Graph((src(), end("x")), {"fc.weight": weight})
