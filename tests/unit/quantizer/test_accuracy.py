"""Integers far off the float model come with a warning or not at all, and the place is named."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant import reference
from secure_quant.errors import AccuracyLoss, CaptureMismatch, ConfigError
from secure_quant.quantizer import AccuracyWarning, Training, quantize
from secure_quant.quantizer.floats import float_values
from secure_quant.quantizer.gate.steps import largest_steps
from secure_quant.quantizer.leveled import Square, quantize_leveled
from secure_quant.quantizer.lower.record import lower_recorded
from secure_quant.quantizer.pipeline import converted_model


def coarse(spread=5.0):
    """Rows of very different size behind one scale: the small ones drown."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    stretch = torch.logspace(0, spread, 32)
    with torch.no_grad():
        model[0].weight *= stretch[:, None]
        model[0].bias *= stretch
        model[2].weight /= stretch
    return model.eval(), torch.randn(64, 16)


def true_error(model, graph, x):
    with torch.no_grad():
        want = model(x).double().numpy()
    got = reference.run(graph, x.numpy())
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


def test_a_loss_is_refused_and_the_layer_named():
    model, x = coarse()
    with pytest.raises(AccuracyLoss, match=r"it jumps at '(0|2)") as caught:
        quantize(model, x, grid=1)
    assert "max_error=" in str(caught.value.hint)


def test_the_bound_is_the_caller_s():
    model, x = coarse()
    with pytest.warns(AccuracyWarning, match="off the float model by"):
        graph = quantize(model, x, grid=1, max_error=np.inf)
    error = true_error(model, graph, x)
    assert error > 0.25
    with pytest.raises(AccuracyLoss):
        quantize(model, x, grid=1, max_error=error * 0.7)
    with pytest.warns(AccuracyWarning):
        quantize(model, x, grid=1, max_error=error * 1.4)


def test_small_errors_pass_in_silence_and_may_be_refused_too():
    torch.manual_seed(0)
    model, x = nn.Linear(16, 4), torch.randn(64, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccuracyWarning)
        graph = quantize(model, x)
    error = true_error(model, graph, x)
    with pytest.raises(AccuracyLoss):
        quantize(model, x, max_error=error / 2)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_bounds_that_are_none_are_refused(bound):
    with pytest.raises(ConfigError):
        quantize(nn.Linear(4, 2), torch.randn(8, 4), max_error=bound)


def test_a_model_that_gives_zeros_is_no_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    nn.init.zeros_(model[2].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccuracyWarning)
        graph = quantize(model, torch.randn(64, 8))
    assert not reference.run(graph, np.ones((2, 8))).any()


class Cancels(nn.Module):
    """Zero, but for what rounding leaves."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.load_state_dict(self.a.state_dict())

    def forward(self, x):
        return self.a(x) - self.b(x)


def test_a_difference_of_equals_is_no_loss():
    torch.manual_seed(0)
    graph = quantize(Cancels(), torch.randn(64, 8))
    assert np.abs(reference.run(graph, np.ones((1, 8)))).max() < 0.1


def test_trained_models_are_compared_with_what_training_made():
    """Training with a high rate takes the weights far from the user's; that is no loss."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(256, 8)
    training = Training(epochs=6, batch_size=32, learning_rate=0.05)
    y = (x[:, 0] > 0).long()
    graph = quantize(model, x, mode="qat", targets=y, training=training)
    assert true_error(model, graph, x) > 1


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(24, 5)

    def forward(self, x):
        h = nn.functional.silu(self.a(x))
        h = nn.functional.avg_pool2d(h + h.amax(-1, keepdim=True), 2)
        return self.b(h.flatten(1)).softmax(-1)


def test_each_op_is_within_its_step_of_torch_s_simulation_and_a_wrong_one_is_not():
    torch.manual_seed(0)
    x = torch.randn(64, 2, 4, 4)
    converted, example = converted_model(Rows(), [x])
    graph, places, _ = lower_recorded(converted, example)
    found = largest_steps(graph, converted, places, x.numpy())
    assert len(found) >= 7
    assert max(found.values()) <= 1
    name = next(n.name for n in graph.nodes if n.name.endswith("a.q"))
    source = next(node for node, made in places.items() if made == name and "quantize" in node)
    node = next(n for n in converted.graph.nodes if n.name == source)
    with converted.graph.inserting_before(node):
        more = converted.graph.call_function(torch.ops.aten.mul.Tensor, (node.args[0], 1.1))
    node.update_arg(0, more)
    assert largest_steps(graph, converted, places, x.numpy())[name] >= 2


def test_float_values_report_the_error_of_the_model_itself():
    """Independent of all that the quantizer does with the module: its own output."""
    torch.manual_seed(0)
    model, x = Rows().eval(), torch.randn(32, 2, 4, 4)
    graph = quantize(model, x)
    with torch.no_grad():
        want = model(x).numpy()
    made = float_values(model, graph, x)(x.numpy())
    assert np.array_equal(made[graph.output.name], want)


def test_float_values_of_a_module_that_cannot_be_captured_are_its_output_alone():
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    graph = quantize(nn.Linear(6, 6), x)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return x * self.scale if float(x.sum()) > -1e9 else -x

    made = float_values(Branches(), graph, x)(x.numpy())
    assert set(made) == {graph.input.name, graph.output.name}
    assert np.array_equal(made[graph.output.name], x.numpy())


class Reversed(nn.Sequential):
    """A Sequential whose forward is its own."""

    def forward(self, x):
        return -super().forward(x)


def test_leveled_layers_are_compared_with_the_module():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(32, 8))
    layers = nn.Linear(8, 8), Square(), nn.Linear(8, 2)
    quantize_leveled(nn.Sequential(*layers), x)
    with pytest.raises(CaptureMismatch):
        quantize_leveled(Reversed(*layers), x)
    with pytest.raises(AccuracyLoss):
        quantize_leveled(nn.Sequential(*layers), x, max_error=1e-6)


@pytest.mark.parametrize("times", [1e3, 1e5, 1e8])
def test_small_outputs_beside_large_ones_are_not_lost_in_silence(times):
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x):
            return torch.cat([self.a(x) * times, self.b(x)], 1)

    torch.manual_seed(0)
    with pytest.warns(AccuracyWarning, match="4 of 8 values of the output"):
        quantize(Apart(), torch.randn(64, 8))


def test_what_is_nothing_but_rounding_is_not_missed():
    """h - h computed two ways is 1e-8 in float32, and 0."""

    class Cancels(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 4)

        def forward(self, x):
            h = self.a(x)
            return torch.cat([h, (h * 3 - h) / 2 - h], 1)

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccuracyWarning)
        quantize(Cancels(), torch.randn(64, 8))
