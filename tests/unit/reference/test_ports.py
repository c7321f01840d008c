"""Named arrays in and out of packed vectors, against numbers written by hand."""

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.errors import DtypeMismatch, ShapeMismatch, ValueOutOfRange
from secure_quant.ir import Graph, ops

X = ops.Input(name="x", shape=(7,), scale=1.0, zero_point=0)


def port(name, start, shape, scale, zero_point, dtype="float32"):
    return ops.InputPort(
        name=f"in.{name}", inputs=("x",), port=name, dtype=dtype, start=start, shape=shape,
        scale=scale, zero_point=zero_point,
    )  # fmt: skip


GRAPH = Graph(
    (
        X,
        port("picture", 0, (2, 2), 0.5, -128),
        port("age", 4, (1,), 1.0, -128, "int64"),
        port("flags", 5, (2,), 1.0, 0, "bool"),
        ops.ReduceSum(name="sum", inputs=("in.picture",), bound=512, scale=0.5),
        ops.OutputPort(
            name="a", inputs=("sum",), port="sums", multiplier=(3, 5), axis=0, scale=0.5
        ),
        ops.OutputPort(name="b", inputs=("in.age",), port="age", scale=1.0),
        ops.OutputPort(name="c", inputs=("in.flags",), port="flags", scale=1.0),
        ops.Output(name="y", inputs=("a", "b", "c"), scale=1.0),
    )
)  # fmt: skip
GIVEN = {
    "flags": np.array([[True, False]]),
    "picture": [[[0.5, 1.0], [2.26, 1000]]],
    "age": np.array([41]),
}


def test_each_input_is_quantized_by_its_own_grid():
    assert reference.quantize_input(GRAPH, GIVEN).tolist() == [[-127, -126, -123, 127, -87, 1, 0]]


def test_outputs_come_back_by_name():
    made = reference.run(GRAPH, GIVEN)
    assert list(made) == ["sums", "age", "flags"]
    assert made["sums"].tolist() == [[[4.5], [5 * 0.5 * (5 + 255)]]]
    assert made["age"].tolist() == [[41.0]]
    assert made["flags"].tolist() == [[1.0, 0.0]]
    assert {array.dtype for array in made.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"age": None}, ShapeMismatch),
        ({"more": [[1.0]]}, ShapeMismatch),
        ({"age": np.array([41, 42])}, ShapeMismatch),
        ({"age": np.array([[41, 42]])}, ShapeMismatch),
        ({"picture": np.zeros((1, 4))}, ShapeMismatch),
        ({"picture": [[[np.nan, 0.0], [0.0, 0.0]]]}, ValueOutOfRange),
        ({"picture": np.array([[[True, True], [True, False]]])}, DtypeMismatch),
        ({"age": np.array([41.0])}, DtypeMismatch),
        ({"age": np.array([-1])}, ValueOutOfRange),
        ({"age": np.array([256])}, ValueOutOfRange),
        ({"flags": np.array([[0, 2]])}, ValueOutOfRange),
        ({"flags": np.array([[0.0, 1.0]])}, DtypeMismatch),
        ({"flags": np.array([["a", "b"]])}, DtypeMismatch),
    ],
)
def test_what_is_refused_names_the_input(change, error):
    given = {name: array for name, array in (GIVEN | change).items() if array is not None}
    with pytest.raises(error, match=r"input|more") as caught:
        reference.quantize_input(GRAPH, given)
    name = next(iter(change))
    assert name in str(caught.value)


def test_an_array_alone_is_refused_where_there_are_several():
    with pytest.raises(ShapeMismatch, match="'picture', 'age'"):
        reference.quantize_input(GRAPH, np.zeros((1, 7)))


ONE = Graph(
    (
        ops.Input(name="x", shape=(3,), scale=1.0, zero_point=0),
        port("row", 0, (3,), 0.5, 0),
        ops.ReduceSum(name="sum", inputs=("in.row",), bound=512, scale=0.5),
        ops.Output(name="y", inputs=("sum",), scale=0.5),
    )
)
PLAIN = Graph(
    (
        ops.Input(name="x", shape=(3,), scale=0.5, zero_point=0),
        ops.ReduceSum(name="sum", inputs=("x",), bound=512, scale=0.5),
        ops.Output(name="y", inputs=("sum",), scale=0.5),
    )
)


@pytest.mark.parametrize(("graph", "name"), [(ONE, "row"), (PLAIN, "x")])
def test_one_of_each_goes_with_and_without_names(graph, name):
    row = np.array([[1.0, 2.0, -4.0], [0.5, 0.0, 0.0]])
    assert reference.run(graph, row).tolist() == [[-1.0], [0.5]]
    assert {k: v.tolist() for k, v in reference.run(graph, {name: row}).items()} == {
        "y": [[-1.0], [0.5]]
    }


def test_several_outputs_ask_for_names():
    graph = Graph(
        (
            *ONE.nodes[:-1],
            ops.OutputPort(name="a", inputs=("sum",), port="sum", scale=0.5),
            ops.OutputPort(name="b", inputs=("in.row",), port="row", scale=0.5),
            ops.Output(name="y", inputs=("a", "b"), scale=1.0),
        )
    )
    with pytest.raises(ShapeMismatch, match=r'pass \{"row": array\}'):
        reference.run(graph, np.zeros((1, 3)))


class Tensor:
    """As torch's with a gradient, on a GPU or of a type that numpy lacks."""

    def __init__(self, error):
        self.error = error

    def __array__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("requires grad"), TypeError("BFloat16")])
def test_what_numpy_cannot_read_is_refused_with_a_way_out(error):
    with pytest.raises(DtypeMismatch, match=r"age.*Tensor.*x\.detach\(\)\.cpu"):
        reference.quantize_input(GRAPH, GIVEN | {"age": Tensor(error)})


def test_one_sample_without_its_axis_is_told_how():
    with pytest.raises(ShapeMismatch, match=r"x\[None\]"):
        reference.quantize_input(GRAPH, GIVEN | {"flags": np.array([True, False])})
