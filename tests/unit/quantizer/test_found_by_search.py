"""What random modules have found (`make fuzz`), one by one: each gives the module's own numbers."""

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant import reference
from secure_quant.quantizer import quantize


class Call(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        self._call = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self._call(self, x)


def written_input_is_the_output(m, x):
    return m.act(x)


def function_of_one_element(m, x):
    h = x[:, 0]
    h.copy_(h * 2)
    return m.head(x)


def writes_through_a_dropout(m, x):
    x.clamp_(-1.0, 1.0)
    h = m.drop(x)
    h.relu_()
    x *= 2.0
    return h.sigmoid_() + m.a(x)


def constant_of_one_value_with_axes(m, x):
    return torch.relu(torch.full((1, 1, 1), 0.3) - m.a(x))


def squeezed(m, x):
    return m.a(x).squeeze()


CASES = {
    "squeeze takes the batch axis of a single sample too": (
        lambda: Call(squeezed, a=nn.Linear(8, 5)), (1, 8),
    ),
    "a constant of one value that has axes": (
        lambda: Call(constant_of_one_value_with_axes, a=nn.Linear(8, 5)), (1, 9, 8),
    ),
    "a dropout in eval mode is its input itself": (
        lambda: Call(writes_through_a_dropout, drop=nn.Dropout(), a=nn.Linear(12, 12)), (12,),
    ),
    "an in-place function of the input is the output": (
        lambda: Call(written_input_is_the_output, act=nn.SiLU(inplace=True)), (2, 8, 8),
    ),
    "a function of one element of each sample": (
        lambda: Call(function_of_one_element, head=nn.Linear(12, 3)), (12,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_found(name):
    make, shape = CASES[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(64, *shape)
    graph = quantize(model, x)
    with torch.no_grad():
        want = model(x.clone()).double().numpy()
    got = reference.run(graph, x.numpy()).reshape(want.shape)
    assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < 0.03
