"""What calibration never saw is not what is always zero."""

import numpy as np
import pytest
import torch
from torch import nn
from unit.quantizer.nets import Net, follows, own_answer, relative_error

from secure_quant import reference
from secure_quant.errors import CalibrationError
from secure_quant.quantizer import Training, quantize
from secure_quant.quantizer.observers import RangeObserver

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("count", "training"),
    [(64, Training(1)), (64, Training(1, batch_size=1, learning_rate=1e-5)), (1, Training(1)),
     (2, Training(2)), (3, Training(1, batch_size=2))],
)  # fmt: skip
def test_training_of_a_single_step_or_sample_knows_its_ranges(count, training):
    model = plain()
    graph = quantize(model, X[:count], mode="qat", targets=torch.zeros(count).long(),
                     training=training)  # fmt: skip
    got, want = reference.run(graph, X[:count].numpy()), own_answer(model, X[:count])
    assert relative_error(got, want) < 0.2  # the weights have moved a little


def test_an_observer_that_saw_nothing_says_so():
    with pytest.raises(CalibrationError, match="no calibration sample"):
        RangeObserver().calculate_qparams()


def head(weight, bias):
    layer = nn.Linear(8, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight).expand(3, 8))
        layer.bias.copy_(torch.tensor(bias))
    return layer


@pytest.mark.parametrize("mode", ["static", "weight-only", "dynamic"])
@pytest.mark.parametrize("size", [1.0, 1000.0, 1e-6])
@pytest.mark.parametrize("bias", [[0.3, -0.2, 0.1], [1e6, 1.0, -3.0], [1e-7, 0.0, 2e-7]])
def test_a_layer_of_zeros_keeps_its_bias(mode, size, bias):
    model = Net(lambda m, x: m.a(x * size), a=head(0.0, bias))
    got = reference.run(quantize(model, X, mode=mode), X.numpy())
    assert np.abs(got - np.array(bias)).max() <= 3e-5 * np.abs(bias).max()


def test_zeros_between_layers_keep_their_bias():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), head(0.0, [0.3, -0.2, 0.1]), nn.Linear(3, 2))
    follows(model, X, bound=0.02)


def test_weights_far_smaller_than_their_bias():
    follows(Net(lambda m, x: m.a(x), a=head(1e-11, [0.3, -0.2, 0.1])), X)


def test_one_row_of_zeros_keeps_its_bias():
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight[3] = 0
        layer.bias[3] = 0.7
    follows(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 4)), X)


def test_a_convolution_of_zeros_keeps_its_bias():
    conv = nn.Conv2d(2, 3, 3)
    nn.init.zeros_(conv.weight)
    x = torch.randn(16, 2, 6, 6)
    graph = quantize(conv, x)
    want = conv.bias.detach().numpy()[None, :, None, None]
    assert np.allclose(reference.run(graph, x.numpy()), want, rtol=1e-5)


def test_a_dead_branch_adds_nothing():
    model = Net(lambda m, x: m.b(torch.relu(m.a(x) - 1e3)) + m.c(x),
                a=nn.Linear(8, 8), b=nn.Linear(8, 4), c=nn.Linear(8, 4))  # fmt: skip
    follows(model, X)


def test_a_constant_value_is_exact():
    follows(Net(lambda m, x: m.a(x * 0 + 3) + x[:, :4] * 0, a=nn.Linear(8, 4)), X, bound=0.01)


@pytest.mark.parametrize("x", [X * 0, X * 0 + 3, X[:1], (X > 0).float()])
def test_calibration_of_little_variety(x):
    follows(plain(), x)
