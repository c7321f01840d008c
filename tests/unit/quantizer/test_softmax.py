"""Softmax of many scores: the maximum in steps, masks by sums, the division behind the product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from secure_quant import reference
from secure_quant.ir import Graph, ops
from secure_quant.mpc.protocol.plan import plan
from secure_quant.quantizer import quantize

KEYS, WIDTH = 32, 16


class Attention(nn.Module):
    """Two heads; ``keep`` is 1 where a key counts."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        with torch.no_grad():
            self.q.weight.mul_(4)
            self.k.weight.mul_(4)

    def forward(self, x, keep=None):
        parts = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mask = None if keep is None else keep[:, None, None, :].bool()
        made = scaled_dot_product_attention(*parts, attn_mask=mask)
        return self.out(made.transpose(1, 2).flatten(2))


def samples(count: int, seed: int):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, KEYS, WIDTH, generator=rng)
    lengths = torch.randint(4, KEYS + 1, (count, 1), generator=rng)
    return x, (torch.arange(KEYS)[None] < lengths).long()


@pytest.fixture(scope="module")
def masked() -> tuple[nn.Module, Graph]:
    torch.manual_seed(1)
    model = Attention().eval()
    x, keep = samples(64, 0)
    return model, quantize(model, {"x": x, "keep": keep})


def error(got, want) -> float:
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


def test_a_mask_takes_no_product_and_a_softmax_no_rounding_before_the_values(masked):
    model, graph = masked
    kinds = [type(node) for node in graph.nodes]
    assert kinds.count(ops.Mul) == 1
    assert kinds.count(ops.ReduceMax) == 1
    (product,) = (node for node in graph.nodes if isinstance(node, ops.Mul))
    assert isinstance(graph.by_name[product.inputs[0]], ops.MatMul)
    (most,) = (node for node in graph.nodes if isinstance(node, ops.ReduceMax))
    steps = graph.values[most.inputs[0]].range
    assert 8 <= steps.hi - steps.lo + 1 <= 64
    gates = {gate.name: gate for gate in plan(graph).gates}
    assert len(gates[most.name].payloads) == 2
    x, keep = samples(64, 5)
    with torch.no_grad():
        want = model(x, keep).numpy()
    got = reference.run(graph, {"x": x.numpy(), "keep": keep.numpy()})
    assert error(next(iter(got.values())) if isinstance(got, dict) else got, want) < 0.05


def test_what_is_hidden_contributes_nothing_whatever_it_is(masked):
    """Far larger scores than any that calibration saw, at the hidden keys alone."""
    _, graph = masked
    x, keep = samples(8, 9)
    seen = keep.bool().numpy()
    for size in (30.0, -30.0, 1e4):
        other = torch.where(keep[..., None].bool(), x, size * torch.randn_like(x))
        one, two = (
            reference.run(graph, {"x": each.numpy(), "keep": keep.numpy()}) for each in (x, other)
        )
        one, two = (next(iter(y.values())) if isinstance(y, dict) else y for y in (one, two))
        assert (one[seen] == two[seen]).all()


def test_without_a_mask(masked):
    torch.manual_seed(2)
    model = Attention().eval()
    x, _ = samples(64, 3)
    graph = quantize(model, x)
    fresh, _ = samples(64, 4)
    with torch.no_grad():
        want = model(fresh).numpy()
    assert error(reference.run(graph, fresh.numpy()), want) < 0.05
    assert sum(isinstance(node, ops.Mul) for node in graph.nodes) == 1
