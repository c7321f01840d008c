"""Masked attention: what is masked contributes nothing, exactly; the rest stays close to float."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from conformance.executors import Mpc
from secure_quant import reference
from secure_quant.errors import SecureQuantError
from secure_quant.quantizer import quantize

T = 6
LATER = torch.ones(T, T).triu(1).bool()
LOWEST = torch.finfo(torch.float32).min


class Masked(nn.Module):
    """Attention whose scores ``way`` masks. ``sharp``: how far apart the scores are."""

    def __init__(self, way, sharp=1.0):
        super().__init__()
        self.qkv, self.way, self.sharp = nn.Linear(16, 48), way, sharp
        self.register_buffer("later", LATER)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.way(self, q * self.sharp, k, v)


def scores(q, k):
    return q @ k.transpose(-1, -2) / 4


def added(value):
    return lambda _m, q, k, v: (scores(q, k) + torch.full((T, T), value).triu(1)).softmax(-1) @ v


def filled(value):
    return lambda m, q, k, v: scores(q, k).masked_fill(m.later, value).softmax(-1) @ v


def heads(m, q, k, v):
    q, k, v = (t.reshape(-1, T, 4, 4).transpose(1, 2) for t in (q, k, v))
    made = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return made.transpose(1, 2).reshape(-1, T, 16)


def sloped(m, q, k, v):
    """Positions as ALiBi adds them, and a causal mask."""
    places = torch.arange(T)
    away = (places[:, None] - places).abs() * 0.5
    return (scores(q, k) - away + torch.zeros(T, T).masked_fill(LATER, -math.inf)).softmax(-1) @ v


WAYS = {
    "add -1e4": added(-1e4),
    "add -1e9": added(-1e9),
    "add -inf": added(-math.inf),
    "add the lowest float": added(LOWEST),
    "add (1 - mask) * -1e4": lambda _m, q, k, v: (
        (scores(q, k) + (1.0 - torch.ones(T, T).tril()) * -1e4).softmax(-1) @ v
    ),
    "fill -inf": filled(-math.inf),
    "fill the lowest float": filled(LOWEST),
    "where": lambda m, q, k, v: torch.where(m.later, -1e9, scores(q, k)).softmax(-1) @ v,
    "where not": lambda m, q, k, v: torch.where(~m.later, scores(q, k), -math.inf).softmax(-1) @ v,
    "causal": lambda _m, q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    "bool": lambda m, q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=~m.later),
    "heads": heads,
    "slopes too": sloped,
}


def built(way, sharp=1.0):
    torch.manual_seed(0)
    return Masked(way, sharp).eval(), torch.randn(128, T, 16)


def off(graph, model, x):
    with torch.no_grad():
        want = model(x).numpy()
    got = reference.run(graph, x.numpy())
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


@pytest.mark.parametrize("name", WAYS)
def test_close_to_float_and_later_tokens_leave_no_trace(name):
    model, x = built(WAYS[name])
    graph = quantize(model, x)
    assert off(graph, model, x) < 0.05
    other = x.clone()
    other[:, 3:] = torch.randn(len(x), T - 3, 16) * 50  # far beyond calibration
    q, p = (reference.quantize_input(graph, t.numpy()) for t in (x, other))
    assert np.array_equal(reference.run_int(graph, q)[:, :3], reference.run_int(graph, p)[:, :3])


@pytest.mark.parametrize("mode", ["static", "weight-only"])
def test_a_mask_costs_little_of_the_scale(mode):
    """-1e9 no more than -50, and about as much as scores without a mask do."""
    errors = []
    for value in (-1e9, -60.0):
        model, x = built(added(value), sharp=4.0)
        errors.append(off(quantize(model, x, mode=mode), model, x))
    assert errors[0] < 0.05
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


def test_a_constant_that_hides_nothing_is_added():
    model, x = built(added(-1.5))
    assert off(quantize(model, x), model, x) < 0.05


def row_hidden(value):
    hidden = torch.zeros(T, T, dtype=torch.bool)
    hidden[2] = True
    return lambda _m, q, k, v: scores(q, k).masked_fill(hidden, value).softmax(-1) @ v


def test_a_row_replaced_by_the_lowest_float_is_uniform():
    model, x = built(row_hidden(LOWEST))
    assert off(quantize(model, x), model, x) < 0.05


@pytest.mark.parametrize("value", [-math.inf, -1e9])
def test_a_row_hidden_whole_is_refused_by_name(value):
    """Its softmax is not a number, or a uniform one that depends on float32's rounding."""
    model, x = built(row_hidden(value))
    with pytest.raises(SecureQuantError):
        quantize(model, x)


def test_encrypted_it_equals_the_reference():
    model, x = built(heads)
    graph = quantize(model, x)
    q = reference.quantize_input(graph, x[:2].numpy())
    got = Mpc("balanced").prepare(graph).run(q)[graph.output.name]
    assert np.array_equal(got, reference.run_int(graph, q))
