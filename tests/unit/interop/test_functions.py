"""A table says which function it holds, or that it holds none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from secure_quant.interop.functions import named_function
from secure_quant.ir import Interval, ops
from secure_quant.ir.tables import Grid, make_table

UNIT = 0.002


def table_of(function, scale: float, zero_point: int) -> ops.Requantize:
    """The table that the quantizer makes for a torch function of sums worth UNIT."""
    grid = Grid(scale, zero_point)
    made = make_table(
        Interval(-6000, 6000), UNIT, lambda v: function(torch.from_numpy(v)).numpy(), grid, 272
    )
    return ops.Requantize(
        name="r", inputs=("a",), multiplier=(1,), axis=-1, offset=made.offset, shift=made.shift,
        table=made.entries, scale=scale, zero_point=zero_point,
    )  # fmt: skip


CASES = {
    "Sigmoid": (torch.sigmoid, 1 / 255, -128),
    "Tanh": (torch.tanh, 1 / 127, 0),
    "Gelu": (functional.gelu, 0.05, -124),
    "Gelu tanh": (lambda x: functional.gelu(x, approximate="tanh"), 0.01, -111),
    "HardSwish": (functional.hardswish, 0.045, -119),
    "HardSigmoid": (functional.hardsigmoid, 1 / 255, -128),
    "Elu": (functional.elu, 0.05, -108),
    "Softplus": (functional.softplus, 0.05, -128),
    "LeakyRelu": (lambda x: functional.leaky_relu(x, 0.1), 0.05, -103),
    "Mul": (lambda x: x * 0.25, 0.02, -20),
    "": (lambda x: x, 0.09, 4),
}


@pytest.mark.parametrize("name", CASES)
def test_functions_are_found(name):
    calls = named_function(table_of(*CASES[name]), UNIT)
    assert calls is not None
    kind = name.split()[0] if name else ""
    assert [call.kind for call in calls if call.kind not in ("Clip", "Relu")] == [kind] * bool(kind)
    if name == "LeakyRelu":
        assert calls[0].attributes["alpha"] == pytest.approx(0.1, rel=0.02)


def test_relu_needs_no_operator_where_the_grid_ends_at_zero():
    assert named_function(table_of(functional.relu, 0.04, -128), UNIT) == ()
    calls = named_function(table_of(functional.relu, 0.08, -20), UNIT)
    assert [call.kind for call in calls] == ["Relu"]


def test_a_clamp_keeps_its_ends():
    (call,) = named_function(table_of(lambda x: x.clamp(-2, 6), 0.06, -30), UNIT)
    assert call.kind == "Clip"
    assert np.allclose(call.constants, (-1.98, 6.0))


def test_others_are_not_named():
    for function in (torch.sin, lambda x: (3 * x).tanh() + 0.3 * x, torch.sign):
        assert named_function(table_of(function, 0.03, 0), UNIT) is None
