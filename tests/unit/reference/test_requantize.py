"""The one nonlinearity: worked examples of the specification, floor, clamp, monotony."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_quant.ir import ops
from secure_quant.reference.kernels import requantize


def _node(multiplier=(1,), *, offset=0, shift=0, table=(0, 1), axis=-1) -> ops.Requantize:
    return ops.Requantize(
        name="q", inputs=("a",), multiplier=multiplier, axis=axis, offset=offset, shift=shift,
        table=table, scale=1.0, zero_point=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("acc", "q"), [(0, 0), (127, 0), (128, 1), (-129, 0), (40_000, 127), (-40_000, 0)]
)
def test_example_of_the_specification(acc, q):
    relu = tuple(max(u - 128, 0) for u in range(256))
    node = _node((16,), offset=128 * 4096 + 2048, shift=12, table=relu)
    assert requantize(node, np.array([[acc]])).tolist() == [[q]]


tables = st.lists(st.integers(-(2**15), 2**15 - 1), min_size=2, max_size=50).map(tuple)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1, max_size=20),
    st.integers(1, 255), st.integers(-(2**40), 2**40), st.integers(0, 31), tables,
)  # fmt: skip
def test_equals_exact_rational_arithmetic(accs, multiplier, offset, shift, table):
    node = _node((multiplier,), offset=offset, shift=shift, table=table)
    want = [
        table[min(max(floor(Fraction(a * multiplier + offset, 2**shift)), 0), len(table) - 1)]
        for a in accs
    ]
    assert requantize(node, np.array([accs])).tolist() == [want]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 255), st.integers(0, 20), tables)
def test_a_monotone_table_makes_a_monotone_map(seed, multiplier, shift, table):
    node = _node((multiplier,), offset=7 << shift, shift=shift, table=tuple(sorted(table)))
    acc = np.sort(np.random.default_rng(seed).integers(-(2**24), 2**24, 100))
    assert (np.diff(requantize(node, acc[None])) >= 0).all()


def test_both_ends_saturate_at_exactly_the_last_entries():
    table = (5, 6, 7, 8)
    node = _node(offset=0, shift=3, table=table)
    acc = np.array([[-(2**31), -1, 0, 7, 8, 31, 32, 2**31 - 1]])
    assert requantize(node, acc).tolist() == [[5, 5, 5, 5, 6, 8, 8, 8]]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_channels_run_along_the_axis_of_the_sample(axis):
    shape = (3, 4, 5)
    count = shape[axis]
    node = _node(tuple(range(1, count + 1)), table=tuple(range(100)), axis=axis)
    made = requantize(node, np.ones((2, *shape), np.int64))
    along = np.moveaxis(made, axis if axis < 0 else axis + 1, 0)
    for c in range(count):
        assert (along[c] == c + 1).all()
