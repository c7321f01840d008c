"""Branches before a LayerNorm: rounded and not clipped, beyond what calibration saw as well."""

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant import reference
from secure_quant.ir import ops
from secure_quant.quantizer import quantize


class Branch(nn.Module):
    """A residual stream, its LayerNorm and a layer; ``gain``: of the branch's outlier."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.branch, self.norm, self.last = nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 6)
        self.branch.weight.data[3] *= gain
        self.eval()

    def forward(self, x):
        return self.last(self.norm(x + self.branch(x)))


def rescaled(graph):
    return [node for node in graph.nodes if isinstance(node, ops.Rescale)]


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(6)
    model, x = Branch(), torch.randn(200, 24)
    return model, x, quantize(model, x)


def test_nothing_is_clipped_and_the_integers_stay_near(made):
    model, x, graph = made
    (branch,) = rescaled(graph)
    source = graph.values[branch.inputs[0]].centred
    assert graph.values[branch.name].range.magnitude > 255
    assert branch.low <= (source.lo * max(branch.multiplier)) >> branch.shift
    with torch.no_grad():
        error = reference.run(graph, x.numpy()) - model(x).numpy()
    assert np.sqrt(np.mean(error**2)) < 0.03


def test_branches_beyond_calibration_keep_their_size(made):
    """Inputs in signs that drive one feature of the branch after the other to its end."""
    model, x, graph = made
    (branch,) = rescaled(graph)
    far = float(x.abs().max()) * torch.sign(model.branch.weight.detach())
    q = np.clip(np.rint(far.numpy() / graph.input.scale) + graph.input.zero_point, -128, 127)
    steps = reference.trace(graph, q.astype(np.int8))[branch.name]
    seen = (q - graph.input.zero_point) * graph.input.scale
    with torch.no_grad():
        want = model.branch(torch.from_numpy(seen).float()).numpy()
    assert np.abs(steps).max() > 200
    assert np.abs(steps * branch.scale - want).max() < 0.02 * np.abs(want).max()


def test_outliers_keep_scales_of_their_own():
    torch.manual_seed(6)
    graph = quantize(Branch(gain=60.0), torch.randn(200, 24))
    assert not rescaled(graph)


def test_finer_activations_keep_their_tables():
    torch.manual_seed(6)
    assert not rescaled(quantize(Branch(), torch.randn(200, 24), mode="weight-only"))
