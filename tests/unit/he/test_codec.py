"""The byte format of ciphertext coefficients."""

from __future__ import annotations

import numpy as np
import pytest

from secure_quant.errors import MalformedMessage
from secure_quant.he.codec import pack, packed_size, unpack, width_of

PRIME = 9007199254614017  # 53 bits


@pytest.mark.parametrize("drop", [0, 1, 5, 8, 13, 21, 28, 45])
@pytest.mark.parametrize("count", [1, 7, 8, 64, 129])
def test_round_trip_errs_by_at_most_half_of_what_was_dropped(drop: int, count: int) -> None:
    rng = np.random.default_rng(drop)
    values = rng.integers(0, PRIME, (3, count), dtype=np.uint64)
    values[0, 0] = PRIME - 1
    octets = pack(values, PRIME, drop)
    assert octets.shape == (3, packed_size(count, width_of(PRIME, drop)))
    back = unpack(octets, count, PRIME, drop)
    error = back.astype(np.int64) - values.astype(np.int64)
    assert np.abs(error).max() <= (1 << drop) // 2
    assert back.max() < PRIME


def test_frozen_bytes() -> None:
    values = np.array([[0x1_2345_6789_ABCD, 1, 0]], np.uint64)
    # 53 bits: six bytes of value >> 5 each, then the low 5 bits of all three in 5 bytes.
    assert (
        pack(values, PRIME, 0).tobytes().hex() == "5e4d3c2b1a090000000000000000000000002d00000000"
    )


def test_value_not_below_the_prime_is_refused() -> None:
    octets = pack(np.full((1, 8), (1 << 53) - 1, np.uint64), PRIME, 0)
    with pytest.raises(MalformedMessage, match="coefficient"):
        unpack(octets, 8, PRIME, 0)


def test_padding_must_be_zero() -> None:
    octets = pack(np.ones((1, 3), np.uint64), PRIME, 0)
    octets[0, -1] = 0x80
    with pytest.raises(MalformedMessage, match="padding"):
        unpack(octets, 3, PRIME, 0)
