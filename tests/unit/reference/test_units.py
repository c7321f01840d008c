"""What the integers of a node are worth is what they stand for in the float model."""

from __future__ import annotations

import math

import numpy as np
import torch

from secure_quant import reference
from secure_quant.ir import ops
from secure_quant.quantizer import quantize
from secure_quant.quantizer.floats import float_values
from secure_quant.reference.units import units


class Deep(torch.nn.Module):
    """More roundings than tables are made for that round twice."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(12, 12) for _ in range(14))

    def forward(self, x):
        for layer in self.layers:
            x = (x + layer(x).relu()) * 0.8
        return x


def test_a_finer_table_changes_no_worth():
    torch.manual_seed(0)
    module, x = Deep().eval(), torch.randn(64, 12)
    graph = quantize(module, x)
    assert any(
        math.gcd(*node.multiplier) > 1 for node in graph.nodes if isinstance(node, ops.Requantize)
    )
    floats = float_values(module, graph, x[:16])(x[:16].numpy())
    values, worth = (
        reference.trace(graph, reference.quantize_input(graph, x[:16].numpy())),
        units(graph),
    )
    seen = 0
    for name, real in floats.items():
        factor = worth[name]
        if factor is None or not real.any():
            continue
        made = (values[name] - graph.values[name].zero_point) * factor
        assert np.abs(made - real).max() < 0.05 * np.abs(real).max(), name
        seen += 1
    assert seen > 50
