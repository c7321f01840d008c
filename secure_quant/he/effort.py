"""About how long a server computes for a layer, in either form of its weights (``weights``)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from secure_quant.he.packing import Packing

__all__ = [
    "evaluated_ns",
    "limbs_of",
    "prefers_taps",
    "taps_ns",
    "transformed_ns",
    "transforms_bytes",
]

SMALL = 4 * 2**20
"""Bytes: transforms of so few are not worth a choice."""
_PATIENCE = 1.5
"""How much longer bytes may take than transforms, which take that much more memory."""
_PRODUCT, _ROUNDED, _SUMMED = 7.4, 0.036, 1.0
"""Nanoseconds of a core with AVX-512: a product modulo a prime of one coefficient of a ciphertext,
of which transforms take one; a product in float64; the sum of one coefficient."""
_EXACT = 53
"""Bits of a whole number that float64 holds."""
_MOST_BITS = 30
"""Of a limb: ``Products.shifted`` takes no larger shift."""


def limbs_of(prime: int, terms: int) -> tuple[int, int]:
    """How many limbs, two at least, and of how many bits, so that ``terms`` products of residues
    with weights of at most 2**7 stay exact."""
    whole = prime.bit_length()
    room = _EXACT - 7 - (terms - 1).bit_length()
    limbs = max(2, -(-whole // min(room, _MOST_BITS)))
    return limbs, -(-whole // limbs)


def taps_ns(packing: Packing, prime: int) -> float:
    """Of all cells."""
    taps, pairs = len(packing.places), packing.n_in * packing.n_out
    limbs, _ = limbs_of(prime, packing.n_in * taps)
    width = packing.degree + prod(packing.wanted_shape)
    each = _ROUNDED * pairs + _SUMMED * packing.n_out
    return packing.cells * taps * limbs * width * each


def transformed_ns(packing: Packing, primes: Sequence[int]) -> float:
    """Of all cells."""
    pairs = packing.n_in * packing.n_out
    return packing.cells * pairs * packing.degree * len(primes) * _PRODUCT


def evaluated_ns(packing: Packing, primes: Sequence[int]) -> float:
    """Of all cells, in the form of the weights that a server with enough memory takes."""
    if prefers_taps(packing, primes):
        return taps_ns(packing, primes[0])
    return transformed_ns(packing, primes)


def transforms_bytes(packing: Packing, primes: Sequence[int]) -> int:
    """What transforms take, if no weight is left out."""
    count = packing.grid[1] * packing.n_in * packing.n_out
    return 8 * count * len(primes) * packing.degree


def prefers_taps(packing: Packing, primes: Sequence[int]) -> bool:
    """Whether weights should stay bytes, if there is memory for transforms."""
    if len(primes) > 1 or transforms_bytes(packing, primes) <= SMALL:
        return False
    return taps_ns(packing, primes[0]) <= _PATIENCE * transformed_ns(packing, primes)
