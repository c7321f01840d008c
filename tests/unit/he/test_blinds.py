"""The flood of two primes against integers of any size."""

from __future__ import annotations

import numpy as np
import pytest

from secure_quant.he import blinds
from secure_quant.he.parameters import Parameters
from secure_quant.onehost.masked import RINGS

# Primes just below what a product may hold, whose remainder is anything but small.
HARD = Parameters(8192, (2**56 - 5, 2**60 - 93), 163841)


class Drawn:
    """Numbers of a test in place of a sampler's, both ends of their ranges among them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def residues(self, count: int, prime: int) -> np.ndarray:
        self.low = self.rng.integers(0, prime, count, dtype=np.uint64)
        self.low[:3] = 0, prime - 1, prime // 2
        return self.low

    def flood(self, shape: tuple[int, int], bound: int) -> np.ndarray:
        self.high = self.rng.integers(-bound, bound, shape)
        self.high[0, :3] = -bound, bound - 1, 0
        return self.high


@pytest.mark.parametrize("ring", [*(r for r in RINGS if len(r.primes) == 2), HARD])
@pytest.mark.parametrize("bound", [1, 2**20, 2**40, 2**55, 2**62])
def test_wide_floods_are_residues_of_one_integer(ring: Parameters, bound: int) -> None:
    drawn, shape = Drawn(bound % 1000), (3, 200)
    made = blinds._wide_flood(drawn, shape, bound, ring)
    whole = drawn.low.reshape(shape).astype(object) + ring.primes[1] * drawn.high.astype(object)
    for i, prime in enumerate(ring.primes):
        assert (made[:, i].astype(object) == whole % prime).all()
