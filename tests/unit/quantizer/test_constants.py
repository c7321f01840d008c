"""Constants, however they are written or computed, are folded to what torch makes of them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from unit.quantizer.nets import Net, follows

from secure_quant.errors import NotFinite, UnsupportedModule
from secure_quant.ir import ops
from secure_quant.quantizer import quantize
from secure_quant.quantizer.positions import POSITIONS

C = torch.linspace(-1, 2, 8)
TWO, TRUE = torch.tensor(2), torch.tensor(True)


def ramp(*shape):
    return torch.linspace(-1, 2, math.prod(shape)).view(*shape)


def samples(*shape):
    return torch.randn(128, *shape, generator=torch.Generator().manual_seed(1))


SUMS = [
    lambda h: torch.add(C, h, alpha=2),
    lambda h: torch.sub(C, h, alpha=3),
    lambda h: torch.sub(h, C, alpha=3),
    lambda h: torch.rsub(h, C, alpha=2),
    lambda h: torch.rsub(h, 3, alpha=2),
    lambda h: 1 - h,
    lambda h: C - h,
    lambda h: C / (h.abs() + 1),
    lambda h: h / (C + 3),
    lambda h: 2 / (h.abs() + 1),
    lambda h: h * TWO + TRUE + torch.tensor(3.0),
    lambda h: h * True + False,
    lambda h: h * (C > 0) + (C > 1),
    lambda h: h + torch.arange(8),
    lambda h: (h.double() * C.double()).float(),
    lambda h: h * C + C,
    lambda h: h / h.shape[1],
    lambda h: (h[:, None, :] + ramp(3, 8))[:, 1],
    lambda h: (h[:, None, :] * ramp(3, 8)).sum(1),
    lambda h: (h[:, :, None] * torch.tensor([1.0, 2, -1])).flatten(1)[:, :8],
    lambda h: (h[:, :, None] * h[:, None, :4])[:, :, 2],
    lambda h: h + torch.ones(1, 8),
    lambda h: h - torch.zeros(h.shape[0], 8) + torch.full((h.shape[0], 1), 2.0),
]


@pytest.mark.parametrize("number", range(len(SUMS)))
def test_sums_and_products_with_constants(number):
    torch.manual_seed(0)
    formula = SUMS[number]
    model = Net(lambda m, x: m.b(formula(m.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 4))
    follows(model, samples(8), bound=0.05)


CHANNELS = torch.tensor([1.0, -2, 3, 0.5])


@pytest.mark.parametrize(
    ("formula", "layer", "shape"),
    [
        (lambda m, x: m.a(x) * CHANNELS.view(4, 1, 1) + ramp(4, 1, 1), nn.Conv2d(3, 4, 3),
         (3, 8, 8)),
        (lambda m, x: m.a((x - ramp(1, 3, 1, 1)) / ramp(1, 3, 1, 1).exp()), nn.Conv2d(3, 4, 3),
         (3, 8, 8)),
        (lambda m, x: m.a(x) * CHANNELS.view(4, 1), nn.Conv1d(3, 4, 3), (3, 8)),
        (lambda m, x: (h := m.a(x)) * CHANNELS.view(4, 1) + h, nn.Conv1d(3, 4, 3), (3, 8)),
        (lambda m, x: m.a(x) * ramp(5, 8), nn.Linear(8, 8), (5, 8)),
        (lambda m, x: (h := m.a(x)) * ramp(5, 8) + h, nn.Linear(8, 8), (5, 8)),
        (lambda m, x: m.a(x) + ramp(4, 6, 6), nn.Conv2d(3, 4, 3), (3, 8, 8)),
        (lambda m, x: m.a(x) * ramp(6, 1) + ramp(6), nn.Conv2d(3, 4, 3), (3, 8, 8)),
    ],
)  # fmt: skip
def test_factors_along_any_axis(formula, layer, shape):
    torch.manual_seed(0)
    follows(Net(formula, a=layer), samples(*shape))


def test_a_factor_for_each_channel_goes_into_the_convolution():
    model = Net(lambda m, x: m.a(x) * CHANNELS.view(4, 1, 1), a=nn.Conv2d(3, 4, 3))
    kinds = [type(node) for node in quantize(model, samples(3, 8, 8)).nodes]
    assert kinds == [ops.Input, ops.Conv2d, ops.Output]


def pruned():
    layer = nn.Linear(8, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: parametrizations.weight_norm(nn.Linear(8, 4)),
        lambda: nn.utils.weight_norm(nn.Linear(8, 4)),
        lambda: parametrizations.spectral_norm(nn.Linear(8, 4)),
        lambda: nn.utils.spectral_norm(nn.Linear(8, 4)),
        lambda: parametrizations.orthogonal(nn.Linear(8, 4)),
        pruned,
    ],
    ids=["weight-norm", "old-weight-norm", "spectral-norm", "old-spectral-norm", "orthogonal",
         "pruned"],
)  # fmt: skip
def test_weights_that_are_computed(make):
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.ReLU(), nn.Linear(4, 4))
    model(torch.randn(4, 8))
    follows(model, samples(8))


WEIGHTS = [
    lambda m, x: functional.linear(x, m.a.weight * 0.5, m.a.bias + 1),
    lambda m, x: functional.linear(m.a(x).relu(), m.a.weight.t()),
    lambda m, x: m.a(m.a(x).relu()) + m.a(x),
    lambda m, x: x @ m.a.weight.t() + m.a.bias,
    lambda m, x: m.a(x) * (x @ torch.ones(8))[:, None],
    lambda m, x: torch.addmm(m.a.bias, x, m.a.weight.t()),
    lambda m, x: torch.addmm(m.a.bias, x, m.a.weight.t(), beta=2, alpha=0.5),
    lambda _, x: functional.conv1d(x[:, None], torch.tensor([[[1.0, 2, 1]]]) / 4),
    lambda m, x: m.a(x) * m.a.weight[0, 0].item(),
]


@pytest.mark.parametrize("number", range(len(WEIGHTS)))
def test_tied_and_derived_weights(number):
    torch.manual_seed(0)
    follows(Net(WEIGHTS[number], a=nn.Linear(8, 8)), samples(8))


TOKENS = [
    lambda m, x: torch.cat([m.c.weight[None].expand(x.shape[0], -1, -1), m.a(x)], 1),
    lambda m, x: torch.cat([m.c.weight[None].expand(len(x), -1, -1), m.a(x)], 1) + ramp(7, 8),
    lambda m, x: functional.scaled_dot_product_attention(
        m.c.weight[None].expand(x.shape[0], -1, -1), m.a(x), m.a(x)
    ),
    lambda m, x: ramp(6, 5) @ m.a(x),
    lambda m, x: m.a(x) + m.c.weight[:1],
]


@pytest.mark.parametrize("number", range(len(TOKENS)))
def test_constants_of_every_sample(number):
    torch.manual_seed(0)
    follows(Net(TOKENS[number], a=nn.Linear(8, 8), c=nn.Linear(8, 2)), samples(5, 8))


@pytest.mark.parametrize(
    ("formula", "word"),
    [
        (lambda m, x: m.a(x) / x.shape[0], "size of the batch"),
        (lambda m, x: m.a(x) * torch.arange(x.shape[0])[:, None], "size of the batch"),
        (lambda m, x: m.a(x) + torch.rand(8), "random"),
        (lambda _, x: torch.zeros(x.shape[0], 4), "does not depend on the input"),
        (lambda m, x: functional.dropout(m.a(x)), "dropout"),
        (lambda m, x: m.a(x) + torch.arange(3.0)[:, None, None], "batch"),
        (lambda m, x: functional.linear(x, m.a(x)[:4]), "batch"),
        (lambda m, x: functional.linear(x, m.a.weight, m.a(x)), "bias"),
    ],
)
def test_what_is_no_constant_is_refused_by_name(formula, word):
    with pytest.raises(UnsupportedModule, match=word):
        quantize(Net(formula, a=nn.Linear(8, 8)), samples(8))


def test_a_division_by_zero_is_refused():
    model = Net(lambda m, x: m.a(x).clamp(1, 2) / C.clamp(0) - x, a=nn.Linear(8, 8))
    with pytest.raises(NotFinite):
        quantize(model, samples(8))


@pytest.mark.parametrize(("inside", "outside"), [(1, 1), (3, 2), (1, 2), (3, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_side_by_side_are_a_grouped_convolution(inside, outside, bias):
    torch.manual_seed(0)
    x, w = torch.randn(4, 5 * inside, 1, 1), torch.randn(5 * outside, inside, 1, 1)
    b = torch.randn(5 * outside) if bias else None
    x, w = x.double().requires_grad_(), w.double().requires_grad_()
    b = None if b is None else b.double()
    made, want = POSITIONS(x, w, b, 5), torch.conv2d(x, w, b, groups=5)
    assert torch.allclose(made, want)
    seen = zip(*(torch.autograd.grad(y.square().sum(), (x, w)) for y in (made, want)), strict=True)
    assert all(torch.allclose(own, other) for own, other in seen)
