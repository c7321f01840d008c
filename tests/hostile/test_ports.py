"""Layouts of named inputs and outputs that contradict themselves are refused as a file is read."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.errors import HashMismatch, InvalidGraph, MalformedModel, MissingParameters
from secure_quant.ir import artifact, ops
from secure_quant.ir.codec import encode_nodes, joined
from secure_quant.ir.lookups import digest_of
from secure_quant.ir.verify import verify
from secure_quant.wire import graph_from_proto, graph_to_proto

HALF = {"dtype": "float32", "scale": 0.5, "zero_point": 0}
X = ops.Input(name="x", shape=(6,), scale=1.0, zero_point=0)
A = ops.InputPort(name="a", inputs=("x",), port="left", start=0, shape=(2,), **HALF)
B = ops.InputPort(name="b", inputs=("x",), port="right", start=2, shape=(2, 2), **HALF)
SUM = ops.ReduceSum(name="s", inputs=("b",), bound=256, scale=0.5)
C = ops.OutputPort(name="c", inputs=("a",), port="same", scale=0.5)
D = ops.OutputPort(name="d", inputs=("s",), port="sum", scale=0.5)
Y = ops.Output(name="y", inputs=("c", "d"), scale=1.0)
HONEST = (X, A, B, SUM, C, D, Y)
COMMITMENT = bytes(range(32))


def file(nodes: tuple[ops.Node, ...], version: str = "secure-quant/2") -> bytes:
    """A public file of any nodes, with a hash that fits them."""
    parts = encode_nodes(nodes)
    inner = hashlib.sha256(joined(parts)).digest()
    digest = hashlib.sha256(b"secure_quant model v1\0" + inner + COMMITMENT).hexdigest()
    tensors = {
        "graph": np.frombuffer(parts.graph, np.uint8),
        "tables": np.frombuffer(parts.tables, "<i2").astype(np.int8),
        "multipliers": np.frombuffer(parts.multipliers, np.uint8), "salt": np.zeros(0, np.uint8),
    }  # fmt: skip
    metadata = {"format": version, "commitment": COMMITMENT.hex(), "hash": digest}
    return artifact.write_tensors(tensors, metadata)


def with_(old: ops.Node, **fields) -> tuple[ops.Node, ...]:
    return tuple(replace(node, **fields) if node is old else node for node in HONEST)


def test_the_honest_file_is_read():
    graph = artifact.decode(file(HONEST))
    assert [(p.name, p.start, p.stop, p.shape) for p in graph.input_ports] == [
        ("left", 0, 2, (2,)), ("right", 2, 6, (2, 2))
    ]  # fmt: skip
    assert [(p.name, p.start, p.stop) for p in graph.output_ports] == [
        ("same", 0, 2), ("sum", 2, 4)
    ]  # fmt: skip
    assert graph.has_ports


def test_it_is_a_file_of_version_2_and_of_no_other():
    with pytest.raises(MalformedModel):
        artifact.decode(file(HONEST, "secure-quant/1"))
    plain = (
        replace(X, scale=0.5),
        replace(SUM, inputs=("x",), bound=768),
        replace(Y, inputs=("s",)),
    )
    with pytest.raises(MalformedModel):
        artifact.decode(file(plain, "secure-quant/2"))
    assert not artifact.decode(file(plain, "secure-quant/1")).has_ports


LINEAR = ops.Linear(
    name="fc", inputs=("a",), in_features=2, out_features=2, bias=False, bound=2**20, scale=1.0
)
SHARED = (
    X, A, B, SUM, LINEAR, ops.ReduceMax(name="m", inputs=("a",)),
    ops.Requantize(name="q", inputs=("fc",), multiplier=(1,), axis=-1, offset=0, shift=0,
                   table=(0, 1), scale=1.0, zero_point=0),
    replace(C, inputs=("fc",)), D, ops.OutputPort(name="e", inputs=("q",), port="e", scale=1.0),
    ops.OutputPort(name="f", inputs=("m",), port="f", scale=1.0),
    replace(Y, inputs=("c", "d", "e", "f")),
)  # fmt: skip
BENT = {
    "overlapping": with_(B, start=1),
    "the same place twice": with_(B, start=0),
    "a gap": with_(B, start=3),
    "beyond the vector": with_(B, start=4),
    "far beyond": with_(B, start=2**47),
    "before the vector": with_(A, start=-1),
    "less than the vector": with_(X, shape=(7,)),
    "more than the vector": with_(X, shape=(5,)),
    "out of order": (X, B, A, SUM, C, D, Y),
    "huge": with_(B, shape=(2**26, 2**20)),
    "a huge vector": with_(X, shape=(2**27,)),
    "no elements": with_(B, shape=(0, 2)),
    "no axes": with_(B, shape=()),
    "one input name twice": with_(B, port="left"),
    "one output name twice": with_(D, port="same"),
    "a picture for a vector": with_(X, shape=(2, 3)),
    "a scale of the vector": with_(X, scale=0.5),
    "a zero point of the vector": with_(X, zero_point=1),
    "a zero point past int8": with_(A, zero_point=128),
    "no scale": with_(A, scale=0.0),
    "another dtype": with_(A, dtype="float64"),
    "a port of a port": with_(B, inputs=("a",)),
    "the vector read beside its ports": with_(SUM, inputs=("x",)),
    "an output left out": with_(Y, inputs=("c",)),
    "an output twice": with_(Y, inputs=("c", "d", "c")),
    "an output that is no port": with_(Y, inputs=("c", "s")),
    "values without ports": with_(Y, inputs=("a", "b")),
    "a scale of all outputs": with_(Y, scale=0.5),
    "a multiplier of all outputs": with_(Y, multiplier=(2,)),
    "multipliers that do not fit": with_(D, multiplier=(1, 2, 3)),
    "a multiplier of an activation": with_(C, multiplier=(3,)),
    "an axis that is not there": with_(D, axis=3),
    "a port of an output": with_(D, inputs=("c",)),
    "an output port read on": (X, A, B, SUM, C, replace(SUM, name="t", inputs=("c",)),
                               replace(D, inputs=("t",)), Y),
    "an accumulator read on": SHARED,
}  # fmt: skip


@pytest.mark.parametrize("name", BENT)
def test_refused_as_it_is_read(name):
    with pytest.raises(InvalidGraph) as caught:
        artifact.decode(file(BENT[name]))
    assert len(str(caught.value)) < 2000


TABLE = np.arange(6, dtype=np.int8).reshape(3, 2)
ROWS = ops.LookupPort(
    name="b", inputs=("x",), port="right", dtype="int64", start=2, shape=(2, 2), scale=0.5,
    zero_point=0, rows=3, digest=digest_of(TABLE),
)  # fmt: skip


def looked_up(table: np.ndarray | None = TABLE, **fields) -> bytes:
    nodes = tuple(replace(ROWS, **fields) if node is B else node for node in HONEST)
    tensors, metadata = artifact.read_tensors(file(nodes))
    own = {} if table is None else {"b.rows": table}
    return artifact.write_tensors(dict(tensors) | own, metadata)


def test_a_public_table_is_read():
    graph = artifact.decode(looked_up())
    assert np.array_equal(graph.lookups["b"], TABLE)
    assert artifact.encode(graph) == looked_up()
    (_, port) = graph.input_ports
    assert (port.rows, port.asked, port.shape) == (3, (2,), (2, 2))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (lambda: looked_up(None), MalformedModel),
        (lambda: looked_up(TABLE[:2]), InvalidGraph),
        (lambda: looked_up(TABLE.T), InvalidGraph),
        (lambda: looked_up(TABLE.astype(np.int16)), InvalidGraph),
        (lambda: looked_up(TABLE + np.int8(1)), HashMismatch),
        (lambda: looked_up(rows=4), InvalidGraph),
        (lambda: looked_up(rows=0), InvalidGraph),
        (lambda: looked_up(rows=2**40), InvalidGraph),
        (lambda: looked_up(digest="0" * 64), HashMismatch),
        (lambda: looked_up(digest="0" * 63), InvalidGraph),
        (lambda: looked_up(digest="G" * 64), InvalidGraph),
        (lambda: looked_up(dtype="float32"), InvalidGraph),
        (lambda: looked_up(start=1), InvalidGraph),
    ],
)
def test_public_tables_that_do_not_fit(data, error):
    with pytest.raises(error):
        artifact.decode(data())


def test_public_tables_from_the_wire():
    graph = artifact.decode(looked_up())
    message = graph_to_proto(graph)
    assert np.array_equal(graph_from_proto(message).lookups["b"], TABLE)
    for bent in (TABLE.tobytes()[:-1], TABLE.tobytes() + b"x", bytes(2**16)):
        message.lookups = bent
        with pytest.raises(MalformedModel):
            graph_from_proto(message)
    message.lookups = bytes(6)
    with pytest.raises(HashMismatch):
        graph_from_proto(message)
    message.lookups = b""  # who serves no table cannot be asked by numbers
    bare = graph_from_proto(message)
    assert bare.hash == graph.hash
    given = {"left": np.zeros((1, 2)), "right": np.zeros((1, 2), int)}
    with pytest.raises(MissingParameters):
        reference.quantize_input(bare, given)


@pytest.mark.parametrize("port", ["", "a b", "é", "x" * 201, "line\nbreak"])
def test_names_that_are_none(port):
    with pytest.raises(MalformedModel):
        artifact.decode(file(with_(A, port=port)))


IDS = ops.IdPort(
    name="b", inputs=("x",), port="right", dtype="int64", start=2, shape=(2, 2), scale=1.0,
    zero_point=0, rows=300,
)  # fmt: skip
TAKEN = ops.Embedding(name="e", inputs=("b",), rows=300, width=2, scale=0.5, zero_point=0)


def secret(ids: dict | None = None, **fields) -> tuple[ops.Node, ...]:
    """HONEST with numbers of rows as its second input."""
    table = replace(TAKEN, **fields)
    return X, A, replace(IDS, **(ids or {})), table, C, replace(D, inputs=("e",)), Y


@pytest.mark.parametrize(
    ("ids", "fields"),
    [
        ({"rows": 200}, {"rows": 200}),  # one digit would do
        ({"rows": 70_000}, {"rows": 70_000}),
        ({"rows": 0}, {"rows": 0}),
        ({"rows": 2**40}, {"rows": 2**40}),
        ({"scale": 0.5}, {}),
        ({"zero_point": 1}, {}),
        ({"dtype": "bool"}, {}),
        ({"shape": (4,)}, {}),
        ({}, {"rows": 299}),
        ({}, {"width": 0}),
        ({}, {"width": 2**40}),
        ({}, {"zero_point": 200}),
        ({}, {"inputs": ("a",)}),
    ],
)  # fmt: skip
def test_secret_tables_that_do_not_fit(ids, fields):
    with pytest.raises(InvalidGraph):
        verify(secret(ids, **fields), {})
    assert verify(secret(), {})["e"].shape == (2, 2)
