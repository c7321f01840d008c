"""What the dealer corrects must make every tuple what CrypTen expects of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_quant.errors import MalformedMessage, MessageTooLarge
from secure_quant.mpc.crypten.tuples import TupleSampler, TupleSpec, correction, own_parts

KEYS = (b"a" * 32, b"b" * 32)


def tuple_of(spec: TupleSpec, index: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both parties' parts, corrected."""
    first, second = (own_parts(spec, index, key) for key in KEYS)
    second[-1] = correction(spec, index, *KEYS)
    return first, second


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@settings(deadline=None)
@given(SHAPES, st.integers(0, 2**32))
def test_square_binary_and_bits(shape, index):
    with np.errstate(over="ignore"):
        one, two = tuple_of(TupleSpec("square", shape), index)
        np.testing.assert_array_equal(one[1] + two[1], (one[0] + two[0]) ** 2)
        one, two = tuple_of(TupleSpec("binary", shape, shape[-1:]), index)
        left, right, result = (a ^ b for a, b in zip(one, two, strict=True))
        np.testing.assert_array_equal(result, left & right)
        one, two = tuple_of(TupleSpec("b2a", shape), index)
        bit = one[0] ^ two[0]
        np.testing.assert_array_equal(one[1] + two[1], bit)
        assert set(bit.ravel()) <= {0, 1}


def test_wraps_counts_what_python_counts():
    one, two = tuple_of(TupleSpec("wraps", (2000,)))
    with np.errstate(over="ignore"):
        found = one[1] + two[1]
    for a, b, wraps in zip(one[0].tolist(), two[0].tolist(), found.tolist(), strict=True):
        inside = a + b - wraps * 2**64
        assert -(2**63) <= inside < 2**63
    assert set(found.tolist()) == {-1, 0, 1}


@pytest.mark.parametrize(
    ("operation", "left", "right", "options"),
    [
        ("mul", (3, 4), (4,), {}),
        ("matmul", (5, 3), (3, 2), {}),
        ("conv1d", (1, 2, 9), (4, 2, 3), {"stride": (2,), "padding": (1,)}),
        ("conv2d", (2, 4, 7, 6), (2, 2, 3, 3), {"groups": 2, "padding": (1, 0)}),
        ("conv_transpose2d", (1, 2, 4, 4), (2, 3, 3, 3), {"stride": (2, 2)}),
    ],
)
def test_products(operation, left, right, options):
    spec = TupleSpec("additive", left, right, operation, **options)
    assert TupleSpec.from_proto(spec.to_proto(3)) == spec
    one, two = tuple_of(spec, 3)
    a, b, c = (torch.from_numpy(x + y) for x, y in zip(one, two, strict=True))
    assert torch.equal(getattr(torch, operation)(a, b, **options), c)
    assert tuple(c.shape) == spec.result


def test_stretches_of_different_indices_share_nothing():
    spec = TupleSpec("square", (64,))
    parts = [own_parts(spec, index, KEYS[0]) for index in range(20)]
    assert np.unique(np.array(parts)).size == 20 * 2 * 64


def test_a_stream_reads_forwards():
    whole = TupleSampler(KEYS[0]).integers((10,))
    again = TupleSampler(KEYS[0])
    np.testing.assert_array_equal(np.append(again.integers((4,)), again.integers((6,))), whole)
    assert (TupleSampler(KEYS[0]).bits((1000,), 3) < 8).all()


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (TupleSpec("cube", (2,)), MalformedMessage),
        (TupleSpec("square", (2,), operation="mul"), MalformedMessage),
        (TupleSpec("additive", (2,), (2,)), MalformedMessage),
        (TupleSpec("additive", (2,), (2,), "load"), MalformedMessage),
        (TupleSpec("additive", (2, 3), (2, 3), "matmul"), MalformedMessage),
        (TupleSpec("binary", (2,), (3,)), MalformedMessage),
        (TupleSpec("square", (2**31, 2**31)), MessageTooLarge),
        (TupleSpec("additive", (2**20, 1), (1, 2**20), "matmul"), MessageTooLarge),
    ],
    ids=range(8),
)
def test_the_dealer_refuses_before_it_takes_memory(spec, error):
    with pytest.raises(error):
        TupleSpec.from_proto(spec.to_proto(0))
