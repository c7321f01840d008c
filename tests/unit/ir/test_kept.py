"""Given scales: how far whole multipliers take a value, and where parts are put together."""

from __future__ import annotations

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.errors import OverflowRisk
from secure_quant.ir import Interval, ops
from secure_quant.ir.build import Builder
from secure_quant.ir.kept import MOST_STEPS, parts_of, whole_channels
from secure_quant.ir.tables import Grid
from secure_quant.ir.terms import Term

GRID = Grid(0.05, -30)


def term(real, limits=(-np.inf, np.inf)) -> Term:
    return Term("fc", (len(real),), Interval(-200_000, 200_000), 1.0, 0, True, real=tuple(real),
                limits=limits)  # fmt: skip


def looked_up(part, acc, channel):
    m = part.term.multiplier[channel if len(part.term.multiplier) > 1 else 0]
    at = (acc * m + part.table.offset) >> part.table.shift
    return np.array(part.table.entries)[np.clip(at, 0, len(part.table.entries) - 1)]


@pytest.mark.parametrize("spread", [1.0, 3.0, 40.0, 2000.0])
def test_no_integer_is_more_than_a_step_from_the_real_value(spread):
    rng = np.random.default_rng(1)
    real = 1e-4 * np.exp(rng.uniform(0, np.log(spread), 12))
    parts = parts_of(term(real), GRID, "fc")
    assert sorted(c for part in parts for c in part.channels) == list(range(12))
    assert (len(parts) > 1) == (spread > 5)
    for part in parts:
        for channel in part.channels:
            # Every sum whose result is on the grid, and some beyond.
            ends = 180 * GRID.scale / real[channel]
            acc = np.unique(np.linspace(-min(ends, 2e5), min(ends, 2e5), 20_001).astype(np.int64))
            want = np.clip(acc * real[channel] / GRID.scale - 30, -128, 127)
            got = looked_up(part, acc, channel)
            assert np.abs(got - want).max() <= 0.5 + MOST_STEPS
            assert np.abs(got - np.rint(want)).max() <= 1


def test_one_scale_is_met_nearly():
    rng, off = np.random.default_rng(2), []
    for real in np.exp(rng.uniform(np.log(1e-5), np.log(2.0), 40)):
        (part,) = parts_of(term([real]), GRID, "fc")
        ends = min(160 * GRID.scale / real, 2e5)
        acc = np.unique(np.linspace(-ends, ends, 20_001).astype(np.int64))
        want = np.clip(acc * real / GRID.scale - 30, -128, 127)
        off.append(np.abs(looked_up(part, acc, 0) - want).max() - 0.5)
    assert max(off) < MOST_STEPS / 2
    assert np.median(off) < MOST_STEPS / 16


def test_powers_of_two_are_met_exactly_halves_up():
    (part,) = parts_of(term([GRID.scale / 2**7]), GRID, "fc")
    acc = np.arange(-13_000, 21_000)
    want = np.clip(np.floor(acc / 2**7 + 0.5).astype(int) - 30, -128, 127)
    assert np.array_equal(looked_up(part, acc, 0), want)


def test_parts_come_together_in_their_order():
    rng = np.random.default_rng(3)
    real = 1e-3 * np.exp(rng.uniform(0, np.log(300), 9))
    builder = Builder(2040)
    builder.add(ops.Input(name="input", shape=(4, 3, 3), scale=0.1, zero_point=2))
    weight = rng.integers(-127, 128, (9, 4, 1, 1)).astype(np.int8)
    builder.parameters["conv.weight"] = weight
    layer = ops.Conv2d(
        name="conv", inputs=("input",), in_channels=4, out_channels=9, kernel=(1, 1), stride=(1, 1),
        padding=(0, 0), dilation=(1, 1), groups=1, bias=False, bound=70_000, scale=1.0,
    )  # fmt: skip
    builder.add(layer)
    acc = Term("conv", (9, 3, 3), Interval(-70_000, 70_000), 1.0, 0, True, axis=0,
               real=tuple(real))  # fmt: skip
    made = builder.requantize_kept(acc, Grid(0.5, 5), "conv.q")
    graph = builder.finish(made)
    assert sum(isinstance(node, ops.Requantize) for node in graph.nodes) > 1
    q = rng.integers(-128, 128, (20, 4, 3, 3)).astype(np.int8)
    trace = reference.trace(graph, q)
    want = np.clip(trace["conv"] * real[:, None, None] / 0.5 + 5, -128, 127)
    assert np.abs(trace[made.name] - want).max() <= 0.5 + MOST_STEPS
    assert len(np.unique(trace[made.name])) > 100


def test_an_output_takes_whole_multipliers_or_refuses():
    made = whole_channels(term([1.0, 0.71, 0.52]))
    assert np.allclose(np.array(made.multiplier) * made.scale, [1.0, 0.71, 0.52], rtol=0.01)
    with pytest.raises(OverflowRisk, match="quantize the output too"):
        whole_channels(term([1.0, 0.0123]))


def test_scales_without_any_multiplier_are_refused():
    with pytest.raises(OverflowRisk):
        parts_of(term([300 * GRID.scale]), GRID, "fc")
