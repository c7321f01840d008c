"""Laws of additive sharing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secure_quant.errors import DtypeMismatch, ShapeMismatch
from secure_quant.keystream import words_under
from secure_quant_client.mpc.sharing import join, share, share_seeded

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)
INT64 = hnp.arrays(np.int64, SHAPES, elements=st.integers(-(2**63), 2**63 - 1))
INT8 = hnp.arrays(np.int8, SHAPES)


@given(st.one_of(INT64, INT8))
def test_shares_add_up(values):
    first, second = share(values)
    assert first.dtype == second.dtype == np.uint64
    assert first.shape == second.shape == values.shape
    np.testing.assert_array_equal(join(first, second), values)
    np.testing.assert_array_equal(join(second, first), values)


@given(st.one_of(INT64, INT8))
def test_a_share_and_the_stream_of_a_seed_add_up(values):
    first, seed = share_seeded(values)
    assert len(seed) == 32
    second = words_under(seed, values.size).reshape(values.shape)
    np.testing.assert_array_equal(join(first, second), values)


def test_every_bit_of_a_seeded_share_is_fresh():
    (first, seed), (other, other_seed) = (share_seeded(np.zeros(4096, np.int64)) for _ in "ab")
    assert seed != other_seed
    ones = np.unpackbits((first ^ other).view(np.uint8)).reshape(4096, 64).mean(0)
    assert abs(ones - 0.5).max() < 0.055


@given(INT64, st.integers(-(2**31), 2**31 - 1))
def test_shares_are_linear(values, factor):
    first, second = share(values)
    scaled = np.uint64(factor % 2**64)
    with np.errstate(over="ignore"):
        expected = values * np.int64(factor)
        np.testing.assert_array_equal(join(first * scaled, second * scaled), expected)


def test_every_bit_of_a_share_is_fresh():
    values = np.zeros(4096, np.int64)
    draws = [share(values) for _ in range(2)]
    assert not np.array_equal(draws[0][0], draws[1][0])
    for first, second in draws:
        for part in (first, second):
            ones = np.unpackbits(part.view(np.uint8)).reshape(4096, 64).mean(0)
            # 4096 fair coins: 0.5 +- 0.055 is seven standard deviations.
            assert abs(ones - 0.5).max() < 0.055


def test_one_share_does_not_depend_on_the_value():
    """The second share of two different inputs differs by exactly the inputs' difference once the
    same mask is added: nothing else of the value is in it."""
    low, high = np.full(1000, -128, np.int8), np.full(1000, 127, np.int8)
    (mask, rest), (other_mask, other_rest) = share(low), share(high)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            ((other_rest + other_mask) - (rest + mask)).view(np.int64), np.full(1000, 255)
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.float32, np.bool_])
def test_refuses_what_is_not_a_signed_integer(dtype):
    with pytest.raises(DtypeMismatch, match="signed"):
        share(np.zeros(3, dtype))
    with pytest.raises(DtypeMismatch, match="signed"):
        share_seeded(np.zeros(3, dtype))


def test_refuses_to_join_what_is_not_two_shares():
    with pytest.raises(DtypeMismatch, match="uint64"):
        join(np.zeros(3, np.int64), np.zeros(3, np.uint64))
    with pytest.raises(ShapeMismatch, match="shares"):
        join(np.zeros(3, np.uint64), np.zeros((3, 1), np.uint64))
