"""Bias correction: coarse weights no longer shift a layer's mean output."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant import reference
from secure_quant.ir import ops
from secure_quant.quantizer import KMeans, Log, Uniform, quantize


def layer(kind, bias=True):
    """One layer and inputs that int8 with scale 1 holds exactly, none of them centred at 0."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if kind == "linear":
        model, shape = nn.Linear(40, 6, bias=bias), (40,)
    elif kind == "conv1d":
        model, shape = nn.Conv1d(3, 6, 5, padding=2, bias=bias), (3, 12)
    else:
        model, shape = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias), (4, 7, 7)
    x = rng.integers(0, 128, (200, *shape)).astype(np.float32)
    x.flat[:2] = -128, 127
    return model, x


def mean_errors(model, x, scheme):
    """|mean over samples and positions of integer minus float output| by channel, and one step of
    the bias of each channel."""
    graph = quantize(model, x, scheme=scheme)
    with torch.no_grad():
        error = reference.run(graph, x) - model(torch.from_numpy(x)).numpy()
    axes = tuple(i for i in range(error.ndim) if i != 1)
    return np.abs(error.mean(axes)), np.array(graph.output.multiplier) * graph.output.scale


@pytest.mark.parametrize("scheme", [Log(), KMeans(4)], ids=repr)
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_means_agree_to_half_a_step_of_the_bias(kind, scheme):
    model, x = layer(kind)
    error, step = mean_errors(model, x, scheme)
    assert (error <= 0.51 * step).all()
    blind, x = layer(kind, bias=False)
    error, step = mean_errors(blind, x, scheme)
    assert (error > 0.51 * step).any()  # nothing to correct with: the shift is real


def test_conv1d_is_corrected():
    model, x = layer("conv1d")
    with torch.no_grad():
        want = model(torch.from_numpy(x)).numpy()
    errors = [
        np.abs((reference.run(quantize(m, x, scheme=Log()), x) - floats).mean((0, 2))).max()
        for m, floats in ((model, want), (without_bias(model), want - bias_of(model)))
    ]
    assert errors[0] < errors[1] / 3


def without_bias(model):
    bare = copy.deepcopy(model)
    bare.bias = None
    return bare


def bias_of(model):
    return model.bias.detach().numpy()[:, None]


def test_int8_weights_leave_the_bias_alone():
    model, x = layer("linear")
    graph = quantize(model, x, scheme=Uniform())
    (node,) = (n for n in graph.nodes if isinstance(n, ops.Linear))
    step = np.array(graph.output.multiplier) * graph.output.scale
    want = np.rint(model.bias.detach().numpy().astype(np.float64) / step)
    assert np.abs(graph.parameters[f"{node.name}.bias"] - want).max() <= 1
