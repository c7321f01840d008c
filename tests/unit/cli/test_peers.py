"""What a peer library is given is the float network that was quantized."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant.errors import OpNotSupported
from secure_quant.ir import ops
from secure_quant.quantizer import quantize
from secure_quant_cli.peers.crypten_plain import _forward, _tensors
from secure_quant_cli.peers.layers import layers


class Residual(nn.Module):
    """Both pools, and a sum that a ReLU follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.block(x) + x)


def finer(node: ops.Node) -> ops.Node:
    """The same function with multipliers that have a common factor, as the quantizer makes some."""
    if not isinstance(node, ops.Requantize):
        return node
    multiplier = tuple(4 * each for each in node.multiplier)
    return replace(node, multiplier=multiplier, offset=4 * node.offset, shift=node.shift + 2)


def test_the_layers_are_those_of_the_module() -> None:
    torch.manual_seed(1)
    model, x = Residual().eval(), torch.randn(16, 3, 8, 8)
    made_of = quantize(model, x)
    expected = model(x).detach().numpy()
    for graph in (made_of, replace(made_of, nodes=tuple(map(finer, made_of.nodes)))):
        plain = list(layers(graph))
        # Neither rounding before a sum nor the average after a ReLU becomes a ReLU of its own.
        kinds = ("conv", "relu", "maxpool", "conv", "add", "relu", "avgpool", "flatten", "linear")
        assert tuple(layer.kind for layer in plain) == kinds
        made = _forward(x.double(), plain, [_tensors(torch, layer) for layer in plain])
        np.testing.assert_allclose(made.numpy(), expected, atol=0.03 * np.abs(expected).max())
    with pytest.raises(OpNotSupported, match="with"):
        list(layers(made_of, chain=True))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), "the function of"),
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2)), "the function of"),
    ],
)
def test_another_function_is_not_taken_for_a_relu(model: nn.Module, match: str) -> None:
    graph = quantize(model, torch.randn(64, 4))
    with pytest.raises(OpNotSupported, match=match):
        list(layers(graph))
