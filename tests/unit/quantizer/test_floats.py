"""The float values behind the nodes of an integer graph are those of the float model."""

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant.quantizer import quantize
from secure_quant.quantizer.floats import float_values
from secure_quant.quantizer.zoo import DepthwiseNet, LeNet, RowClassifier


@pytest.mark.parametrize(
    ("build", "shape", "left_out"),
    [(LeNet, (3, 32, 32), 0), (RowClassifier, (8, 8), 29), (DepthwiseNet, (3, 32, 32), 1)],
)
def test_output_and_most_layers(build, shape, left_out):
    torch.manual_seed(0)
    model = build().eval()
    x = np.random.default_rng(0).normal(size=(16, *shape)).astype(np.float32)
    graph = quantize(model, x)
    found = float_values(model, graph, x[:4])(x)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    assert np.allclose(found["output"], expected, atol=1e-5)
    assert len(graph.nodes) - len(found) <= left_out
    for name, value in found.items():
        assert value.shape == (16, *graph.values[name].shape)


def test_layers_are_those_of_the_modules():
    torch.manual_seed(0)
    model = LeNet().eval()
    x = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    graph = quantize(model, x, scheme="log")  # weights far from the float ones
    values = float_values(model, graph, x)(x)
    seen = {}

    def keep(name):
        def hook(_module, _arguments, made):
            seen[name] = made.detach().numpy()

        return hook

    for name in ("conv1", "conv2", "fc1", "fc2", "fc3"):
        model.get_submodule(name).register_forward_hook(keep(name))
    model(torch.from_numpy(x))
    assert len(seen) == 5
    for name, expected in seen.items():
        assert np.allclose(values[name], expected, atol=1e-5), name
    assert np.allclose(values["fc1.q"], np.maximum(seen["fc1"], 0), atol=1e-5)


def test_nodes_of_another_model_are_left_out():
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    graph = quantize(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), x)
    other = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    assert set(float_values(other, graph, x)(x)) == {"input", "2", "output"}
