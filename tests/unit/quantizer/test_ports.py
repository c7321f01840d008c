"""Modules of several inputs and outputs, in the forms in which people write and feed them."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from unit.quantizer.nets import Net, relative_error

from secure_quant import reference
from secure_quant.errors import AccuracyLoss, CalibrationError, SecureQuantError, UnsupportedModule
from secure_quant.interop.onnx_export import feeds, packed, to_onnx
from secure_quant.ir import ops
from secure_quant.quantizer import Training, quantize
from secure_quant.quantizer.floats import float_values
from secure_quant.quantizer.gate.accuracy import Bounds, check_accuracy
from secure_quant.quantizer.gate.capture import _Truth
from secure_quant.quantizer.gate.probes import Probe
from secure_quant.quantizer.ports import OutputSpec

GENERATOR = torch.Generator().manual_seed(0)
PICTURE = torch.rand(64, 2, 4, 4, generator=GENERATOR)
ROW = torch.randn(64, 5, generator=GENERATOR) * 100
BOTH = {"picture": PICTURE, "row": ROW}


class Two(nn.Module):
    """wrap: what it returns of (logits, hidden)."""

    def __init__(self, wrap=lambda logits, hidden: {"logits": logits, "hidden": hidden}):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(64, 8)
        self.row, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.wrap = wrap

    def forward(self, picture, row):
        h = torch.relu(self.conv(picture)).flatten(1)
        h = torch.relu(self.fc(h) + self.row(row / 100))
        return self.wrap(self.head(h), 1000 * h)


class AB(Net):
    """A Net of two inputs."""

    def forward(self, a, b):
        return self.call(self, a, b)


def floats(model, *given, **named):
    with torch.no_grad():
        return model(*given, **named)


def near(graph, model, given, names):
    made = reference.run(graph, {name: x.numpy() for name, x in given.items()})
    want = floats(model, **given)
    want = dict(zip(names, want if isinstance(want, tuple) else want.values(), strict=True))
    assert list(made) == names
    for name in names:
        assert made[name].shape == want[name].shape
        assert relative_error(made[name], want[name].numpy()) < 0.04, name


@pytest.mark.parametrize(
    "data",
    [
        BOTH,
        {"row": ROW.numpy(), "picture": PICTURE.numpy()},
        (PICTURE, ROW),
        [PICTURE.numpy(), ROW.numpy()],
        [BOTH, BOTH],
        ({"picture": PICTURE[i : i + 9], "row": ROW[i : i + 9]} for i in range(0, 60, 9)),
        [(PICTURE[:30], ROW[:30]), (PICTURE[30:], ROW[30:])],
        DataLoader(TensorDataset(PICTURE, ROW), batch_size=10),
        DataLoader(TensorDataset(PICTURE, ROW, torch.arange(64)), batch_size=10),
        DataLoader([{"picture": p, "row": r} for p, r in zip(PICTURE, ROW, strict=True)], 16),
    ],
    ids=["dict", "dict of arrays", "tuple", "list", "list of dicts", "generator of dicts",
         "list of tuples", "loader of tuples", "loader with targets", "loader of dicts"],
)  # fmt: skip
def test_data_in_every_form(data):
    graph = quantize(Two(), data)
    assert [(p.name, p.shape, p.dtype) for p in graph.input_ports] == [
        ("picture", (2, 4, 4), "float32"), ("row", (5,), "float32")
    ]  # fmt: skip
    near(graph, Two(), BOTH, ["logits", "hidden"])


Pair = namedtuple("Pair", ["logits", "hidden"])


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    attention: torch.Tensor | None = None


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda a, b: (a, b), ["output_0", "output_1"]),
        (lambda a, b: [a, b], ["output_0", "output_1"]),
        (lambda a, b: (None, a, b), ["output_1", "output_2"]),
        (lambda a, b: Pair(a, b), ["logits", "hidden"]),
        (lambda a, b: Answer(a, b), ["logits", "hidden"]),
        (lambda a, b: OrderedDict(b=b, a=a, none=None), ["b", "a"]),
        (lambda a, b: {"all": (a, b)}, ["all_0", "all_1"]),
        (lambda a, b: (a, {"h": b}), ["output_0", "output_1_h"]),
        (lambda a, _: a, ["output"]),
    ],
)
def test_outputs_in_every_form(wrap, names):
    graph = quantize(Two(wrap), BOTH)
    made = reference.run(graph, {name: x.numpy() for name, x in BOTH.items()})
    assert list(made) == names
    want = floats(Two(lambda a, b: (a, b)), **BOTH)
    for value in made.values():
        whole = want[0] if value.shape[1] == 3 else want[1]
        assert relative_error(value, whole.numpy()) < 0.04


def test_each_output_keeps_its_own_scale_and_nothing_is_rounded_to_leave():
    graph = quantize(Two(), BOTH)
    logits, hidden = graph.output_ports
    assert graph.values[logits.node].accumulator  # the layer's own sums, per channel
    assert len(logits.multiplier) == 3
    assert hidden.value.scale > 10 * logits.value.scale
    assert isinstance(graph.by_name[graph.by_name[logits.node].inputs[0]], ops.Linear)


def test_one_input_several_outputs():
    model = Net(lambda n, x: (n.m(x), x.mean(1)), m=nn.Linear(5, 2))
    graph = quantize(model, ROW)
    assert [p.name for p in graph.input_ports] == ["x"]
    made = reference.run(graph, {"x": ROW.numpy()})
    assert relative_error(made["output_0"], floats(model, ROW)[0].numpy()) < 0.03
    assert relative_error(made["output_1"][:, 0], floats(model, ROW)[1].numpy()) < 0.03


def test_one_tensor_in_and_out_is_as_before():
    graph = quantize(nn.Linear(5, 2), ROW)
    assert not graph.has_ports
    assert [type(node) for node in graph.nodes] == [ops.Input, ops.Linear, ops.Output]


def test_an_output_that_others_read_on_leaves_as_an_activation():
    """Parties hold no share of a layer's mask: its sums leave as shares or enter a table."""

    def forward(n, x):
        h = n.first(x)
        return {"before": h, "after": n.second(torch.relu(h)), "same": h}

    model = Net(forward, first=nn.Linear(5, 6), second=nn.Linear(6, 2))
    graph = quantize(model, ROW)
    before, _, same = graph.output_ports
    source = graph.by_name[before.node].inputs[0]
    assert isinstance(graph.by_name[source], ops.Requantize)
    assert graph.by_name[same.node].inputs[0] == source
    near(graph, model, {"x": ROW}, ["before", "after", "same"])


class Typed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.row, self.head = nn.Linear(5, 6), nn.Linear(7, 2)

    def forward(self, row, age, flags, *, weight):
        h = self.row(row) * flags.unsqueeze(-1).float()[:, :, 0]
        return self.head(torch.cat([h, age.float() / 50], 1)) * weight[:, None]


TYPED = {
    "row": ROW / 100,
    "age": torch.arange(64)[:, None] + 18,
    "flags": torch.arange(64 * 6).reshape(64, 6) % 3 > 0,
    "weight": torch.arange(64) % 3,
}


def test_integers_and_bools_stand_for_themselves():
    graph = quantize(Typed(), TYPED)
    grids = {p.name: (p.dtype, p.shape, p.value.scale) for p in graph.input_ports}
    assert grids["age"] == ("int64", (1,), 1.0)
    assert grids["flags"] == ("bool", (6,), 1.0)
    assert grids["weight"] == ("int64", (1,), 1.0)
    given = {name: x.numpy() for name, x in TYPED.items()}
    q = reference.quantize_input(graph, given)
    age = next(p for p in graph.input_ports if p.name == "age")
    assert np.array_equal(q[:, age.start] - age.value.zero_point, given["age"][:, 0])
    made = reference.run(graph, given)["output"]
    assert relative_error(made, floats(Typed(), **TYPED).numpy()) < 0.05


@pytest.mark.parametrize("mode", ["weight-only", "dynamic"])
def test_modes(mode):
    near(quantize(Two(), BOTH, mode=mode), Two(), BOTH, ["logits", "hidden"])


def test_training_sees_the_outputs_by_name():
    seen = []

    def loss(made, wanted):
        seen.append(set(made))
        return nn.functional.cross_entropy(made["logits"], wanted) + made["hidden"].mean() * 1e-6

    graph = quantize(
        Two(), BOTH, mode="qat", targets=torch.arange(64) % 3, max_error=np.inf,
        training=Training(epochs=1, loss=loss),
    )  # fmt: skip
    assert seen[0] == {"logits", "hidden"}
    assert [p.name for p in graph.output_ports] == ["logits", "hidden"]


def test_onnxruntime_gives_the_same_integers():
    graph = quantize(Typed(), TYPED)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    q = np.random.default_rng(3).integers(-128, 128, (50, *graph.input.shape)).astype(np.int8)
    names = [output.name for output in session.get_outputs()]
    made = dict(zip(names, session.run(None, feeds(graph, q)), strict=True))
    assert np.array_equal(packed(graph, made), reference.run_int(graph, q))


def test_the_float_model_layer_by_layer():
    graph = quantize(Two(), BOTH)
    values = float_values(Two(), graph, BOTH)({name: x[:7] for name, x in BOTH.items()})
    want = floats(Two(), PICTURE[:7], ROW[:7])
    inputs = {p.name: values[p.node] for p in graph.input_ports}
    outputs = {p.name: values[p.node] for p in graph.output_ports}
    assert np.array_equal(inputs["picture"], PICTURE[:7].numpy())
    assert np.allclose(outputs["hidden"], want["hidden"].numpy(), rtol=1e-5)
    assert np.allclose(outputs["logits"], want["logits"].numpy(), rtol=1e-5)
    assert "conv.q" in values


@pytest.mark.parametrize(
    ("model", "data", "error", "words"),
    [
        (Two(), {"picture": PICTURE}, CalibrationError, ["'row' is missing"]),
        (Two(), {**BOTH, "labels": ROW}, CalibrationError, ["'labels' is no argument"]),
        (Two(), {"picture": PICTURE, "row": ROW[:9]}, CalibrationError, ["'row': 9"]),
        (Two(), {"picture": PICTURE[:, :1], "row": ROW}, CalibrationError, ["Two on picture"]),
        (Two(), {"picture": PICTURE, "row": "text"}, CalibrationError, ["input 'row'"]),
        (Two(), {"picture": PICTURE, "row": ROW * np.nan}, CalibrationError, ["input 'row'"]),
        (Two(), {}, CalibrationError, ["inputs of Two"]),
        (Two(), [BOTH, ROW], CalibrationError, ["by name"]),
        (Two(), [BOTH, {"picture": PICTURE, "row": ROW[:, :4]}], CalibrationError, ["row"]),
        (Two(), PICTURE, UnsupportedModule, ["argument"]),
        (Two(lambda a, _: (a, a.argmax(1))), BOTH, UnsupportedModule, ["'output_1'", "int64"]),
        (Two(lambda a, b: (a, b.sum())), BOTH, UnsupportedModule, ["'output_1'", "batch"]),
        (Two(lambda a, b: {"a b": a, "c": b}), BOTH, UnsupportedModule, ["'a b'", "name"]),
        (Two(lambda a, b: {"x": [a], "x_0": b}), BOTH, UnsupportedModule, ["'x_0'"]),
        (Two(lambda a, _: (a, object())), BOTH, UnsupportedModule, ["object", "tensors"]),
        (Two(lambda a, _: (a, torch.ones(len(a), 2))), BOTH, UnsupportedModule, ["'output_1'"]),
        (AB(lambda n, a, _: n.m(a), m=nn.Linear(5, 2)), (ROW, ROW), UnsupportedModule,
         ["input 'b'", "no output depends"]),
        (AB(lambda n, a, b: n.m(a) + b.shape[1], m=nn.Linear(5, 2)), (ROW, ROW),
         UnsupportedModule, ["input 'b'"]),
    ],
)  # fmt: skip
def test_what_is_refused_says_which(model, data, error, words):
    with pytest.raises(error) as caught:
        quantize(model, data)
    for word in words:
        assert word in str(caught.value), caught.value


def test_paths_in_messages_are_the_users_own():
    model = AB(lambda n, a, b: n.part(a) + b, part=nn.Sequential(nn.Linear(5, 5), nn.Tanh()))
    graph = quantize(model, {"a": ROW, "b": ROW})
    assert "part.0" in graph.by_name
    bad = AB(lambda n, a, b: n.part(a) + b, part=Net(lambda _, x: x.sort(1).values))
    with pytest.raises(SecureQuantError, match="in part:"):
        quantize(bad, {"a": ROW, "b": ROW})


OUTPUTS = (OutputSpec("large", (2,), 0), OutputSpec("small", (2,), 2))


def test_the_gate_compares_a_small_output_beside_its_own_size():
    value = torch.tensor([[1e6, 2e6, 0.0, 1.0]]).double()
    truth = _Truth(Probe("p", torch.zeros(1, 1)), value, torch.zeros(4).double(), OUTPUTS)
    other = value + torch.tensor([0.0, 0.0, 1e-3, 0.0])
    assert truth.excess(other).max() > 1
    assert "'small'" in truth.relative(other)
    whole = _Truth(truth.probe, value, truth.noise)
    assert whole.excess(other).max() <= 1  # hidden beside the large one


def test_accuracy_is_judged_output_by_output():
    graph = quantize(Two(), BOTH)
    x = torch.cat([PICTURE.flatten(1), ROW], 1).numpy()
    want = floats(Two(lambda a, b: torch.cat([a, b], 1)), **BOTH).numpy()
    assert check_accuracy(graph, x, want, dict, Bounds.of(None)) < 0.04
    want[:, :3] *= 3  # the logits, a thousandth of the other in size
    with pytest.raises(AccuracyLoss, match="at output 'logits'"):
        check_accuracy(graph, x, want, dict, Bounds.of(None))
