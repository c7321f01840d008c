"""Laws of sharing: inputs by XOR, outputs mod 2^64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secure_quant.errors import DtypeMismatch, ShapeMismatch
from secure_quant.keystream import Keystream
from secure_quant_client.mpc.sharing import join, share, share_seeded

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)
INT64 = hnp.arrays(np.int64, SHAPES, elements=st.integers(-(2**63), 2**63 - 1))
INT8 = hnp.arrays(np.int8, SHAPES)


@given(INT8)
def test_shares_are_the_input_by_xor(values):
    first, second = share(values)
    assert first.dtype == second.dtype == np.uint8
    assert first.shape == second.shape == values.shape
    np.testing.assert_array_equal((first ^ second).view(np.int8), values)


@given(INT8)
def test_a_share_and_the_stream_of_a_seed_are_the_input(values):
    first, seed = share_seeded(values)
    assert len(seed) == 32
    assert (first.dtype, first.shape) == (np.uint8, values.shape)
    second = Keystream(seed).bytes(values.size).reshape(values.shape)
    np.testing.assert_array_equal((first ^ second).view(np.int8), values)


def test_any_order_of_memory_is_shared():
    values = np.arange(-60, 60, dtype=np.int8).reshape(2, 3, 20).transpose(2, 0, 1)[::-2]
    first, second = share(values)
    np.testing.assert_array_equal((first ^ second).view(np.int8), values)
    first, seed = share_seeded(values)
    second = np.frombuffer(Keystream(seed).bytes(values.size), np.uint8)
    sent = np.frombuffer(first.tobytes(), np.uint8)
    np.testing.assert_array_equal((sent ^ second).view(np.int8), values.reshape(-1))


def ones_per_bit(octets):
    return np.unpackbits(octets).reshape(-1, 8).mean(0)


def test_every_bit_of_a_share_is_fresh():
    values = np.zeros(4096, np.int8)
    draws = [share(values) for _ in range(2)]
    assert not np.array_equal(draws[0][0], draws[1][0])
    for first, second in draws:
        for part in (first, second):
            # 4096 fair coins: 0.5 +- 0.055 is seven standard deviations.
            assert abs(ones_per_bit(part) - 0.5).max() < 0.055


def test_every_bit_of_a_seeded_share_is_fresh():
    (first, seed), (other, other_seed) = (share_seeded(np.zeros(4096, np.int8)) for _ in "ab")
    assert seed != other_seed
    for part in (first, other, first ^ other):
        assert abs(ones_per_bit(part) - 0.5).max() < 0.055


def test_one_share_does_not_depend_on_the_value():
    """The second shares of two different inputs differ by exactly the inputs' difference once the
    masks are taken off: nothing else of the value is in them."""
    low, high = np.full(1000, -128, np.int8), np.full(1000, 127, np.int8)
    (mask, rest), (other_mask, other_rest) = share(low), share(high)
    assert ((mask ^ rest ^ other_mask ^ other_rest) == 0xFF).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64, np.float32, np.bool_])
def test_refuses_what_is_not_int8(dtype):
    with pytest.raises(DtypeMismatch, match="int8"):
        share(np.zeros(3, dtype))
    with pytest.raises(DtypeMismatch, match="int8"):
        share_seeded(np.zeros(3, dtype))


@given(INT64, st.integers(0, 2**64 - 1))
def test_shares_of_an_output_add_up(values, mask):
    masks = np.full(values.shape, mask, np.uint64)
    rest = values.view(np.uint64) - masks
    np.testing.assert_array_equal(join(masks, rest), values)
    np.testing.assert_array_equal(join(rest, masks), values)


def test_refuses_to_join_what_is_not_two_shares():
    with pytest.raises(DtypeMismatch, match="uint64"):
        join(np.zeros(3, np.int64), np.zeros(3, np.uint64))
    with pytest.raises(ShapeMismatch, match="shares"):
        join(np.zeros(3, np.uint64), np.zeros((3, 1), np.uint64))
