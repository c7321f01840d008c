"""Static quantization: the integers mean what the converted torch model computes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from secure_quant import reference
from secure_quant.errors import CalibrationError, ConfigError, UnsupportedModule
from secure_quant.ir import artifact, ops
from secure_quant.quantizer import quantize
from secure_quant.quantizer.lower.record import lower_recorded
from secure_quant.quantizer.pipeline import converted_model
from secure_quant.quantizer.zoo import (
    DepthwiseNet,
    LeNet,
    ResNet,
    RowClassifier,
    TransformerEncoder,
    accuracy,
    linear,
    mlp,
)


def floats(model, x):
    with torch.no_grad():
        return model(torch.as_tensor(x)).numpy()


def relative_error(got, want):
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


@pytest.mark.parametrize("fixture", ["flat", "images", "rows"])
def test_accuracy_is_within_half_a_point_of_float(fixture, request):
    model, data = request.getfixturevalue(fixture)
    graph = quantize(model, data.train_x[:128])
    want = floats(model, data.test_x)
    got = reference.run(graph, data.test_x)
    assert accuracy(want, data.test_y) > 0.85
    assert abs(accuracy(got, data.test_y) - accuracy(want, data.test_y)) <= 0.0051
    assert relative_error(got, want) < 0.04


def test_lenet_artifact_is_small(images):
    model, data = images
    graph = quantize(model, data.train_x[:64])
    floats32 = 4 * sum(p.numel() for p in model.parameters())
    assert len(artifact.encode(graph)) <= 0.27 * floats32


@pytest.mark.parametrize(
    ("build", "shape", "most"),
    [
        (linear, (8,), 0.01),
        (mlp, (64,), 0.02),
        (LeNet, (3, 32, 32), 0.03),
        (lambda: LeNet(bias=False, padding=2), (3, 32, 32), 0.03),
        (lambda: ResNet(1, width=8), (3, 32, 32), 0.05),
        (DepthwiseNet, (3, 32, 32), 0.05),
        (RowClassifier, (8, 8), 0.05),
        (TransformerEncoder, (16, 64), 0.05),
    ],
)
def test_integers_follow_the_converted_model(build, shape, most):
    """Against torch's own simulation of the same scales: what is left is the width of buckets."""
    torch.manual_seed(3)
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(3))
    converted, example = converted_model(build(), [x])
    graph = lower_recorded(converted, example).graph
    assert relative_error(reference.run(graph, x.numpy()), floats(converted, x)) < most


class Exact(nn.Module):
    """Every step of this net is exact on the int8 grid, so no bucket can hide an error."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, groups=1)
        self.fc = nn.Linear(3 * 3 * 3, 5)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))


def test_one_layer_equals_float_arithmetic_on_its_scales():
    torch.manual_seed(0)
    layer = nn.Linear(20, 7)
    x = torch.randn(50, 20)
    converted, example = converted_model(layer, [x])
    graph = lower_recorded(converted, example).graph
    error = np.abs(reference.run(graph, x.numpy()) - floats(converted, x))
    # Only the bias is rounded: half a step of the accumulator, times the largest multiplier.
    node = graph.output
    assert error.max() <= max(node.multiplier) * node.scale * 0.51 + 1e-6


@pytest.mark.parametrize(
    "function",
    [
        nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Hardswish(),
        nn.Hardsigmoid(), nn.LeakyReLU(0.1), nn.ELU(), nn.Softplus(), nn.Mish(),
        nn.ReLU(inplace=True), nn.Hardtanh(-2.0, 2.0), nn.GELU("tanh"),
    ],
    ids=repr,
)  # fmt: skip
def test_activation_functions_are_fused_into_one_table(function):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), function, nn.Linear(16, 4))
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * 3
    graph = quantize(model, x)
    kinds = [type(node) for node in graph.nodes]
    assert kinds == [ops.Input, ops.Linear, ops.Requantize, ops.Linear, ops.Output]
    assert relative_error(reference.run(graph, x.numpy()), floats(model, x)) < 0.03


class Gated(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Linear(8, 8), nn.Linear(8, 3), gate

    def forward(self, x):
        return self.fc2(self.gate(self.fc1(x)))


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x * torch.sigmoid(x),
        lambda x: x * functional.relu6(x + 3) / 6,
        lambda x: 0.5 * x + x.clamp(-1, 1),
        lambda x: functional.relu(functional.gelu(x)) - 0.25,
        lambda x: functional.dropout(x.relu(), training=False).clone(),
    ],
)
def test_a_formula_of_one_value_is_one_table(gate):
    torch.manual_seed(0)
    model, x = Gated(gate), torch.randn(100, 8)
    graph = quantize(model, x)
    assert sum(isinstance(node, ops.Requantize) for node in graph.nodes) == 1
    assert relative_error(reference.run(graph, x.numpy()), floats(model, x)) < 0.03


class Views(nn.Module):
    """Splits, slices, joins and sums of one input."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        a, b = self.fc(x).chunk(2, dim=1)
        c = (a.reshape(-1, 2, 3).transpose(1, 2).flatten(1) - 0.5 * b) * b
        return self.head(torch.cat([a, b[:, ::2], c, x[:, 3:8]], dim=1))


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same", dilation=2)
        self.head = nn.Linear(4 * 6, 3)

    def forward(self, x):
        x = functional.max_pool2d(self.conv(x), 3, stride=2, padding=1).relu()
        a = functional.avg_pool2d(x, 2)
        b = functional.adaptive_avg_pool2d(x, (2, 1))
        c = x.mean((2, 3), keepdim=True) + x.sum(dim=(-2, -1), keepdim=True) / 16
        return self.head(torch.cat([t.flatten(1) for t in (a, b, c)], 1)[:, :24])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.LayerNorm(6)
        nn.init.normal_(self.norm.weight, 1, 0.3)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT / 6**0.5
        return self.norm(x + torch.softmax(scores, dim=-1) @ self.v(x)).amax(dim=-1)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Views, (12,)),
        (Pools, (3, 8, 8)),
        (Attention, (5, 6)),
        (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), nn.BatchNorm1d(4)), (6,)),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 2), nn.Flatten()), (3, 4, 4)),
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv1d(4, 2, 3)), (3, 9)),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1)), (6,)),
        (lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Softmax(1), nn.Flatten()), (6,)),
    ],
    ids=["views", "pools", "attention", "batch-norm-1d", "batch-norm-2d", "conv1d", "softmax",
         "softmax-axis"],
)  # fmt: skip
def test_close_to_float(build, shape):
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(5))
    graph = quantize(model, x)
    got, want = reference.run(graph, x.numpy()), floats(model, x)
    assert got.shape == want.shape
    assert relative_error(got, want) < 0.06


def test_batch_norm_folds():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    )
    model.train()(torch.randn(64, 3, 6, 6) * 2 + 1)
    x = torch.randn(64, 3, 6, 6)
    graph = quantize(model, x)
    convolutions = [node for node in graph.nodes if isinstance(node, ops.Conv2d)]
    assert [node.bias for node in convolutions] == [True]
    assert relative_error(reference.run(graph, x.numpy()), floats(model.eval(), x)) < 0.03


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "mse"])
def test_calibrators(calibrator, images):
    model, data = images
    graph = quantize(model, data.train_x[:128], calibrator=calibrator)
    assert accuracy(reference.run(graph, data.test_x), data.test_y) > 0.8


def test_outliers_move_minmax_but_not_percentile():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(4000, 4)
    x[0, 0] = 100.0
    scales = {
        c: quantize(model, x, calibrator=c).input.scale for c in ("minmax", "percentile", "mse")
    }
    assert scales["percentile"] < scales["minmax"] / 5
    assert scales["mse"] < scales["minmax"]


def test_names_are_module_paths(rows):
    model, data = rows
    names = {node.name for node in quantize(model, data.train_x[:8]).nodes}
    assert {"encoder.layers.0.qkv", "encoder.layers.0.fc1", "encoder.layers.0.fc1.q"} <= names


def test_quantizing_leaves_the_model_alone(flat):
    model, data = flat
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    quantize(model, data.train_x[:64], scheme="kmeans")
    assert model.training
    model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_same_input_same_graph(flat):
    model, data = flat
    one, two = (quantize(model, data.train_x[:64]) for _ in range(2))
    assert one.nodes == two.nodes
    assert all(np.array_equal(one.parameters[k], two.parameters[k]) for k in one.parameters)


class Bad(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(6, 6), inner)

    def forward(self, x):
        return self.deep(x)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (Call(lambda x: torch.cumprod(x, 1)), ["cumprod", "deep.1"]),
        (Call(lambda x: x.topk(2)[0]), ["topk", "deep.1"]),
        (Call(lambda x: x.flip(0)), ["flip", "deep.1"]),
        (
            Call(lambda x: torch.linalg.inv(x.view(-1, 6, 1) @ x.view(-1, 1, 6) + torch.eye(6))),
            ["linalg_inv", "deep.1"],
        ),
        (Call(lambda x: x.t() @ x), ["deep.1"]),
    ],
)
def test_what_cannot_be_lowered_is_named(inner, words):
    with pytest.raises(UnsupportedModule) as caught:
        quantize(Bad(inner), torch.randn(8, 6))
    assert all(word in str(caught.value) for word in words)
    assert caught.value.hint


def test_branches_on_values_are_refused():
    model = Call(lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(UnsupportedModule, match=r"torch\.export"):
        quantize(model, torch.randn(8, 6))


@pytest.mark.parametrize(
    "calibration",
    [None, [], "data", 3.0, torch.zeros(0, 8), torch.tensor([1.0, float("nan")]).repeat(2, 4),
     [torch.zeros(2, 8), torch.zeros(2, 9)], torch.zeros(8)],
)  # fmt: skip
def test_unusable_calibration_is_refused(calibration):
    with pytest.raises(CalibrationError):
        quantize(linear(), calibration)


@pytest.mark.parametrize(
    "options", [{"mode": "x"}, {"scheme": "x"}, {"calibrator": "x"}, {"grid": 256}]
)
def test_unknown_options_are_refused(options):
    with pytest.raises(ConfigError):
        quantize(linear(), torch.randn(8, 8), **options)


def test_constant_zero_activations_do_not_divide_by_zero():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    x = torch.zeros(4, 4)
    graph = quantize(model, x)
    assert np.allclose(reference.run(graph, x.numpy()), floats(model, x), atol=1e-2)


def test_progress_is_told():
    seen = []
    quantize(linear(), torch.randn(8, 8), progress=lambda *step: seen.append(step[0]))
    assert seen == sorted(seen, key=["capture", "weights", "calibrate", "convert"].index)
    assert len(set(seen)) == 4
