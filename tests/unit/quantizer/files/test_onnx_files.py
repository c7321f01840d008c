"""ONNX files as models: each operator against onnxruntime, whole models against torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import secure_quant as sq
from secure_quant.errors import CaptureMismatch, ConfigError, MalformedModel, UnsupportedModule
from secure_quant.quantizer import files, zoo
from secure_quant.quantizer.files import onnx_values
from secure_quant.quantizer.files.onnx_check import check_same
from secure_quant.quantizer.files.onnx_model import OnnxModule, checked, read_onnx

RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model(
    nodes, shape, constants=(), *, batch: str | int = "n", opset: int = 21
) -> onnx.ModelProto:
    """Nodes from "x" to "y"; each constant is (name, array)."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def one(kind: str, shape, *constants, opset: int = 21, **attributes) -> onnx.ModelProto:
    named = [(f"c{i}", value) for i, value in enumerate(constants) if value is not None]
    inputs = ["x", *["" if value is None else f"c{i}" for i, value in enumerate(constants)]]
    node = helper.make_node(kind, inputs, ["y"], **attributes)
    return model([node], shape, named, opset=opset)


IMAGE, ROW = (4, 6, 8), (6,)
OPERATORS = {
    "conv, uneven pads": one("Conv", IMAGE, floats(3, 4, 3, 3), floats(3), pads=[0, 1, 2, 1]),
    "conv, same upper": one("Conv", IMAGE, floats(4, 1, 3, 3), auto_pad="SAME_UPPER", group=4,
                            strides=[2, 2]),
    "conv, same lower": one("Conv", IMAGE, floats(3, 4, 2, 2), auto_pad="SAME_LOWER"),
    "conv 1-d": one("Conv", (4, 9), floats(3, 4, 3), dilations=[2]),
    "conv transposed": one("ConvTranspose", IMAGE, floats(4, 3, 3, 3), floats(3),
                           strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    "conv transposed, uneven": one("ConvTranspose", IMAGE, floats(4, 3, 3, 3),
                                   strides=[2, 2], pads=[0, 1, 1, 0]),
    "gemm": one("Gemm", ROW, floats(6, 5), floats(5)),
    "gemm, scaled": one("Gemm", ROW, floats(5, 6), floats(5), transB=1, alpha=0.5, beta=2.0),
    "matmul": one("MatMul", (3, 6), floats(6, 5)),
    "batch norm": one("BatchNormalization", IMAGE, floats(4), floats(4), floats(4),
                      np.abs(floats(4)) + 0.5, epsilon=1e-3),
    "instance norm": one("InstanceNormalization", IMAGE, floats(4), floats(4)),
    "group norm": one("GroupNormalization", IMAGE, floats(4), floats(4), num_groups=2),
    "layer norm": one("LayerNormalization", (3, 6), floats(6), floats(6)),
    "layer norm, two axes": one("LayerNormalization", (3, 6), floats(3, 6), axis=-2),
    "l2": one("LpNormalization", ROW, axis=1),
    "lrn": one("LRN", IMAGE, size=3),
    "max pool": one("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]),
    "max pool, uneven": one("MaxPool", IMAGE, kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
    "max pool, ceil": one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average pool": one("AveragePool", IMAGE, kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
    "average pool, pads count": one("AveragePool", IMAGE, kernel_shape=[3, 3],
                                    pads=[0, 0, 1, 1], count_include_pad=1),
    "global average": one("GlobalAveragePool", IMAGE),
    "global max": one("GlobalMaxPool", IMAGE),
    "clip": one("Clip", ROW, np.float32(-0.5), np.float32(0.7)),
    "clip below": one("Clip", ROW, None, np.float32(0.7)),
    "clip of set 7": one("Clip", ROW, opset=9, min=-0.1, max=0.2),
    "hard sigmoid": one("HardSigmoid", ROW, alpha=0.3),
    "prelu": one("PRelu", IMAGE, floats(4, 1, 1)),
    "prelu of elements": one("PRelu", (3, 6), floats(3, 6)),
    "softmax": one("Softmax", (3, 6)),
    "softmax of set 11": one("Softmax", (3, 6), opset=11),
    "log-softmax": one("LogSoftmax", (3, 6), axis=1),
    "gelu": one("Gelu", ROW),
    "gelu, tanh": one("Gelu", ROW, approximate="tanh"),
    "power": one("Pow", ROW, np.float32(2.0)),
    "add": one("Add", IMAGE, floats(4, 1, 1)),
    "subtract a number": one("Sub", ROW, np.array([1.5], np.float32)),
    "divide": one("Div", ROW, np.float32(3.0)),
    "reshape, copied axes": one("Reshape", IMAGE, whole(0, 2, -1)),
    "flatten": one("Flatten", IMAGE),
    "flatten all": one("Flatten", ROW, axis=0),
    "transpose": one("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    "squeeze": one("Squeeze", (1, 6), whole(1)),
    "unsqueeze": one("Unsqueeze", ROW, whole(1, -1)),
    "unsqueeze of set 11": one("Unsqueeze", ROW, opset=11, axes=[1]),
    "slice": one("Slice", IMAGE, whole(1, -7), whole(100, -1), whole(2, 3), whole(2, 3)),
    "slice backwards": one("Slice", IMAGE, whole(-1), whole(-100), whole(3), whole(-2)),
    "gather one": one("Gather", IMAGE, np.int64(-1), axis=1),
    "gather several": one("Gather", IMAGE, whole(2, 0, 2), axis=1),
    "gather a table": one("Gather", IMAGE, np.array([[1, 0], [3, 3]]), axis=3),
    "expand": one("Expand", (1, 6), whole(1, 4, 6)),
    "tile": one("Tile", (2, 6), whole(1, 3, 2)),
    "pad": one("Pad", IMAGE, whole(0, 0, 1, 2, 0, 0, 0, 3), np.float32(0.5)),
    "pad, reflected": one("Pad", IMAGE, whole(0, 0, 1, 2, 0, 0, 1, 3), mode="reflect"),
    "pad, some axes": one("Pad", IMAGE, whole(1, 2), None, whole(3), mode="edge"),
    "depth to space": one("DepthToSpace", IMAGE, blocksize=2),
    "depth to space, CRD": one("DepthToSpace", IMAGE, blocksize=2, mode="CRD"),
    "space to depth": one("SpaceToDepth", IMAGE, blocksize=2),
    "resize": one("Resize", IMAGE, None, np.array([1, 1, 2, 2], np.float32),
                  mode="nearest", coordinate_transformation_mode="asymmetric",
                  nearest_mode="floor"),
    "resize, half pixel": one("Resize", IMAGE, None, np.array([1, 1, 3, 2], np.float32)),
    "resize, linear": one("Resize", IMAGE, None, None, whole(2, 4, 9, 12), mode="linear"),
    "upsample": one("Upsample", IMAGE, np.array([1, 1, 2, 3], np.float32), opset=9),
    "mean": one("ReduceMean", IMAGE, whole(2, 3)),
    "mean of set 11": one("ReduceMean", IMAGE, opset=11, axes=[2, 3], keepdims=0),
    "l2 of axes": one("ReduceL2", IMAGE, whole(1)),
    "log-sum-exp": one("ReduceLogSumExp", IMAGE, whole(1), keepdims=0),
    "einsum": one("Einsum", (3, 6), floats(6, 5), equation="bij,jk->bik"),
}  # fmt: skip
OPERATORS |= {
    name: one(name, ROW)
    for name in ("Abs", "Elu", "Erf", "Exp", "HardSwish", "LeakyRelu", "Mish", "Neg", "Relu",
                 "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "Celu")
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_computes_what_onnxruntime_does(name: str) -> None:
    proto = OPERATORS[name]
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    batch = 2 if name == "resize, linear" else 5
    if batch == 2:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    x = torch.from_numpy(RNG.normal(size=(batch, *shape)).astype(np.float32))
    if name in ("expand", "flatten all", "resize, linear"):  # what they make of a batch is one
        module = OnnxModule(checked(proto))
        check_first_only(module, x[:batch])
    else:
        check_same(OnnxModule(checked(proto)), [x])


def check_first_only(module: OnnxModule, x: torch.Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(module.proto.SerializeToString())
    wanted = session.run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(module(x).numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("two", [False, True])
def test_recurrent_layers(kind: str, two: bool, tmp_path) -> None:
    ways, gates = 1 + two, {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    w, r = floats(ways, gates * 5, 6), floats(ways, gates * 5, 5)
    b = floats(ways, 2 * gates * 5)
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(kind, ["t", "w", "r", "b"], ["o"], hidden_size=5,
                         direction="bidirectional" if two else "forward", **more),
        helper.make_node("Transpose", ["o"], ["y"], perm=[2, 0, 1, 3]),
    ]  # fmt: skip
    proto = model(nodes, (4, 6), [("w", w), ("r", r), ("b", b)])
    check_same(OnnxModule(checked(proto)), [torch.from_numpy(floats(3, 4, 6))])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("make", [zoo.mlp, zoo.LeNet, zoo.TransformerEncoder])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_gives_the_integers_of_the_module(make, dynamic, tmp_path) -> None:
    torch.manual_seed(0)
    shape = {"mlp": (64,), "LeNet": (3, 32, 32), "TransformerEncoder": (16, 64)}[make.__name__]
    module, x = make().eval(), torch.randn(32, *shape)
    path = tmp_path / "model.onnx"
    axes = {"x": {0: "n"}} if dynamic else None
    torch.onnx.export(
        module, (x[: 1 + dynamic],), path, dynamo=False, input_names=["x"], dynamic_axes=axes
    )
    got, wanted = sq.quantize(path, x), sq.quantize(module, x)
    ours, theirs = (sq.reference.run(g, x.numpy()) for g in (got, wanted))
    # A float sum in another order may move a scale by one unit in its last place.
    assert np.abs(ours - theirs).max() <= 0.02 * np.abs(theirs).max()


def test_layers_are_named_as_in_the_file() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="/head/Gemm")]
    graph = sq.quantize(model(nodes, (6,), [("w", floats(6, 5))]), floats(32, 6))
    assert [node.name for node in graph.nodes][1] == "head_Gemm"


def test_shapes_are_followed_and_the_fixed_batch_is_freed() -> None:
    fixed = model([helper.make_node("Reshape", ["x", "s"], ["y"])], (4, 6), [("s", whole(1, 24))],
                  batch=1)  # fmt: skip
    assert OnnxModule(checked(fixed))(torch.zeros(7, 4, 6)).shape == (7, 24)
    free = model([
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["size"], axis=0),
        helper.make_node("Reshape", ["x", "size"], ["y"]),
    ], (4, 6), [("zero", np.int64(0)), ("axis", whole(0)), ("rest", whole(24))])  # fmt: skip
    assert OnnxModule(checked(free))(torch.zeros(7, 4, 6)).shape == (7, 24)


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (one("Det", (3, 3)), "Det at .*an operator that is not read"),
        (one("NonZero", ROW), "NonZero"),
        (one("Conv", IMAGE, floats(3, 4, 3, 3), opset=6), "operator set 6"),
        (one("MaxPool", (4, 6, 8), kernel_shape=[2, 2], dilations=[1, 1], storage_order=0,
             auto_pad="VALID", opset=21), None),
        (one("Resize", IMAGE, None, np.array([1, 1, 1.5, 1.5], np.float32)), "mode nearest"),
        (one("Cast", ROW, to=TensorProto.INT64), "a cast of computed values to int64"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_node(proto, says) -> None:
    x = torch.from_numpy(
        floats(2, *[d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]])
    )
    if says is None:
        OnnxModule(checked(proto))(x)
        return
    with pytest.raises(UnsupportedModule, match=says):
        OnnxModule(checked(proto))(x)


def test_a_wrong_operator_is_caught(monkeypatch) -> None:
    monkeypatch.setitem(onnx_values.VALUES, "Elu", lambda _, x: torch.relu(x))
    monkeypatch.setattr("secure_quant.quantizer.files.onnx_model._OPERATORS", onnx_values.VALUES)
    nodes = [helper.make_node("Elu", ["x"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    with pytest.raises(CaptureMismatch, match="'h'"):
        sq.quantize(model(nodes, ROW), floats(32, 6))


def test_a_broken_file_is_a_named_error(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x07garbage" * 20)
    with pytest.raises(MalformedModel, match=r"m\.onnx"):
        read_onnx(path)
    proto = one("Relu", ROW)
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(MalformedModel):
        sq.quantize(proto, floats(8, 6))
    with pytest.raises(MalformedModel, match="none"):
        sq.quantize(tmp_path / "none.onnx", floats(8, 6))
    with pytest.raises(UnsupportedModule, match=r"weights\.pt"):
        sq.quantize(tmp_path / "weights.pt", floats(8, 6))


def test_without_the_extra_the_hint_names_it(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="extra 'onnx'"):
        files.opened(one("Relu", ROW), [torch.zeros(2, 6)])


def test_fine_tuning_a_file_trains_its_weights() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    proto = model(nodes, (6,), [("w", floats(6, 5)), ("b", floats(5))])
    assert [p.requires_grad for p in OnnxModule(checked(proto)).parameters()] == [True, False]
