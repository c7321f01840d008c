"""The flood of several primes against integers of any size."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from secure_quant.he import blinds
from secure_quant.he.parameters import Parameters
from secure_quant.onehost.masked import RINGS, WIDEST

# Primes just below what a product may hold, whose remainder is anything but small.
HARD = Parameters(8192, (2**56 - 5, 2**60 - 93), 163841)
HARD_THREE = Parameters(8192, (2**56 - 5, 2**60 - 93, 2**56 - 27), 163841)


class Drawn:
    """Numbers of a test in place of a sampler's, both ends of their ranges among them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.low: list[np.ndarray] = []

    def residues(self, count: int, prime: int) -> np.ndarray:
        low = self.rng.integers(0, prime, count, dtype=np.uint64)
        low[:3] = 0, prime - 1, prime // 2
        self.low.append(low)
        return low

    def flood(self, shape: tuple[int, int], bound: int) -> np.ndarray:
        self.high = self.rng.integers(-bound, bound, shape)
        self.high[0, :3] = -bound, bound - 1, 0
        return self.high


@pytest.mark.parametrize("ring", [*RINGS, WIDEST, HARD, HARD_THREE], ids=repr)
@pytest.mark.parametrize("bound", [1, 2**20, 2**40, 2**55, 2**62])
def test_wide_floods_are_residues_of_one_integer(ring: Parameters, bound: int) -> None:
    drawn, shape = Drawn(bound % 1000), (3, 200)
    made = blinds._wide_flood(drawn, shape, bound, ring)
    low, weight = np.zeros(shape, object), 1
    for digit, prime in zip(drawn.low, ring.primes[1:], strict=True):
        low += digit.reshape(shape).astype(object) * weight
        weight *= prime
    # Every A below the product of the dropped primes has digits of its own: it is uniform.
    assert weight == ring.dropped == prod(ring.primes[1:])
    assert low.min() == 0
    assert low.max() == weight - 1
    whole = low + weight * drawn.high.astype(object)
    for i, prime in enumerate(ring.primes):
        assert (made[:, i].astype(object) == whole % prime).all()
