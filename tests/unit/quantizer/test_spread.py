"""Hidden features far larger than the others enter the next layer in parts."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net

from secure_quant import reference
from secure_quant.ir import ops
from secure_quant.quantizer import quantize
from secure_quant.quantizer.passes import spread


def net(function, large=(3, 17, 40), size=12.0, hidden=64):
    """Two layers around ``function``; a few hidden features are ``size`` times the others."""
    torch.manual_seed(0)
    first, second = nn.Linear(32, hidden), nn.Linear(hidden, 32)
    with torch.no_grad():
        first.weight[list(large)] *= size
        second.weight[:, list(large)] /= size
    return Net(lambda m, x: m.b(function(m.a(x))), a=first, b=second)


def error(model, x, **options):
    graph = quantize(model, x[:256], **options)
    got = reference.run(graph, x[256:].numpy())
    with torch.no_grad():
        want = model(x[256:]).numpy()
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean())), graph


def kinds(graph):
    return [type(node) for node in graph.nodes]


FUNCTIONS = {
    "gelu": functional.gelu,
    "tanh gelu": lambda h: functional.gelu(h, approximate="tanh"),
    "silu": functional.silu,
    "written out": lambda h: h * torch.sigmoid(1.702 * h),
    "relu": torch.relu,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_large_feature_no_longer_sets_the_scale_of_all(name, monkeypatch):
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(1))
    model = net(FUNCTIONS[name])
    off, graph = error(model, x)
    assert kinds(graph).count(ops.Concat) == 1
    monkeypatch.setattr(spread, "LEAST_GAIN", np.inf)
    whole, plain = error(model, x)
    assert ops.Concat not in kinds(plain)
    assert off < whole / 1.6


def test_copies_cost_columns_and_no_lookups():
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(1))
    _, graph = error(net(functional.gelu), x)
    looked_up = sum(
        np.prod(graph.values[n.name].shape) for n in graph.nodes if isinstance(n, ops.Requantize)
    )
    assert looked_up == 64
    layers = [n for n in graph.nodes if isinstance(n, ops.Linear)]
    assert sum(n.out_features for n in layers[:-1]) == 64
    assert 64 < layers[-1].in_features <= 64 + 64 // spread.MORE


@pytest.mark.parametrize(
    "model",
    [
        net(functional.gelu, size=1.0),
        Net(lambda m, x: m.b(h := functional.gelu(m.a(x))) + h,
            a=nn.Linear(32, 32), b=nn.Linear(32, 32)),
        Net(lambda m, x: m.b(functional.gelu(h := m.a(x))) + h,
            a=nn.Linear(32, 32), b=nn.Linear(32, 32)),
    ],
    ids=["even", "read elsewhere", "read before"],
)  # fmt: skip
def test_what_gains_nothing_or_is_read_elsewhere_stays_whole(model):
    if hasattr(model, "a") and model.a.out_features == 32:
        with torch.no_grad():
            model.a.weight[3] *= 12
    _, graph = error(model, torch.randn(512, 32, generator=torch.Generator().manual_seed(1)))
    assert ops.Concat not in kinds(graph)


def test_the_scale_is_the_least_that_few_copies_pay_for():
    size = torch.ones(64)
    size[5], size[9] = 8.0, 3.0
    groups = spread._groups(size)
    made = {n: chosen.tolist() for n, chosen in groups.items()}
    assert sum((n - 1) * len(chosen) for n, chosen in made.items()) <= 64 // spread.MORE
    assert sorted(c for chosen in made.values() for c in chosen) == list(range(64))
    largest = max(float(size[c]) / n for n, chosen in made.items() for c in chosen)
    assert largest <= 8.0 / spread.LEAST_GAIN


def test_features_that_are_always_zero_are_no_obstacle():
    model = net(torch.relu)
    with torch.no_grad():
        model.a.weight[50:].zero_()
        model.a.bias[50:] = -1.0
    off, graph = error(model, torch.randn(512, 32, generator=torch.Generator().manual_seed(1)))
    assert off < 0.05
    assert ops.Concat in kinds(graph)
