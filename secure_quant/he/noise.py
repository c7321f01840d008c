"""How large the error of a response can be, and the most that may be rounded off it.

All bounds hold together, for every coefficient of a call, but with probability below 2**-40 over
the client's and the server's randomness. They use public numbers alone: ``docs/spec/ckks.md``
derives each line.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from secure_quant.he.parameters import Parameters, Tier

__all__ = [
    "BLINDING",
    "ERROR_BOUND",
    "ERROR_VARIANCE",
    "HIDING_BITS",
    "Layer",
    "Scaling",
    "answer_noise",
    "choose",
    "distance",
    "key_variance",
    "margin",
    "weight_noise",
]

ERROR_BOUND = 21
ERROR_VARIANCE = ERROR_BOUND / 2
"""Errors are centred binomial: 21 bits less 21 bits, as in SEAL."""

HIDING_BITS: dict[Tier, int] = {"T1": 8, "T1-strict": 44}
"""The flood is at least 2**bits times all that depends on the weights."""

BLINDING = 2**8
"""The variance of the flood is at least so many times that of the key's error times u."""

_TAIL_BITS = 42  # four events of 2**-42 each: below 2**-40 together


@dataclass(frozen=True)
class Layer:
    """What a bound needs to know: ``outputs`` wanted coefficients in one call, each at most
    ``bound`` in magnitude; rows of at most ``row_l1`` = Σ|w|; ``rows`` of them in one response."""

    outputs: int
    bound: int
    row_l1: int
    rows: int

    @cached_property
    def tail(self) -> float:
        """r: a sum of proxy variance v exceeds r·√v in one of the outputs with probability at
        most 2**-42."""
        exact = math.sqrt(2 * math.log(2) * (1 + math.log2(self.outputs) + _TAIL_BITS))
        return math.ceil(64 * exact) / 64  # the same on every machine

    def weight(self, degree: int) -> float:
        """Bound on the nonzero coefficients of the secret key and of every u of one call
        (Hoeffding: each is nonzero with probability 2/3)."""
        return min(degree, 2 / 3 * degree + self.tail * math.sqrt(degree) / 2)

    @property
    def l1(self) -> int:
        """Σ|w| over all weight polynomials that make one response."""
        return self.rows * self.row_l1

    @cached_property
    def l2(self) -> float:
        """Upper bound of sqrt(Σ w²): |w| <= 128."""
        return math.sqrt(128 * self.l1)


@dataclass(frozen=True, slots=True)
class Scaling:
    """unit: an integer y travels as y·unit (times the dropped prime, where there is one).
    drop_*: low bits left out of c0 upward, of the public key, of c1 and c0 downward.
    flood: noise is uniform in [-flood, flood) (times the dropped prime)."""

    unit: int
    drop_up: int
    drop_key: int
    drop_c1: int
    drop_c0: int
    flood: int


def weight_noise(layer: Layer, drop: int) -> float:
    """Bound on the error that the weights multiply: Σ (e + ρ)·w, ρ the rounding of c0 upward,
    which the client centres with one more random bit."""
    proxy = ERROR_VARIANCE + (_rounding_variance(drop) + 0.25 if drop else 0.0)
    likely = layer.tail * math.sqrt(proxy) * layer.l2
    return min(likely, (ERROR_BOUND + 1 + _largest_rounding(drop)) * layer.l1)


def key_variance(layer: Layer, ring: Parameters, drop: int) -> float:
    """Proxy variance of (e + ρ)·u, ρ the rounding of the public key."""
    # With several primes the key is rounded to a multiple of all but the first.
    rounding = ring.dropped**2 / 12 if ring.dropped > 1 else _rounding_variance(drop)
    return (ERROR_VARIANCE + rounding) * layer.weight(ring.degree)


def answer_noise(
    layer: Layer, ring: Parameters, drop_key: int, drop_c1: int, drop_c0: int
) -> float:
    """Bound on all errors of an answer but the weights' and the flood, after rescaling:
    (e + ρ)·u + e0 + e1·s of the fresh encryption of zero and ρ0 + ρ1·s of rounding downward."""
    return _spread(layer, ring, drop_key, drop_c1) + _own(ring, drop_c0)


def _spread(layer: Layer, ring: Parameters, drop_key: int, drop_c1: int) -> float:
    """What the key's and c1's dropped bits make of ``answer_noise``."""
    weight, rescaled = layer.weight(ring.degree), ring.dropped > 1
    blind = key_variance(layer, ring, drop_key) + ERROR_VARIANCE * weight
    down = _rounding_variance(drop_c1) + (ring.rounding**2 / 12 if rescaled else 0.0)
    spread = layer.tail * math.sqrt(blind / ring.dropped**2 + down * weight)
    means = ((drop_key > 0) + (drop_c1 > 0)) * weight / 2
    return spread + means


def _own(ring: Parameters, drop_c0: int) -> float:
    """The rest of it."""
    rescaling = ring.rounding / 2 if ring.dropped > 1 else 0.0
    return _largest_rounding(drop_c0) + rescaling + ERROR_BOUND / ring.dropped


def margin(layer: Layer, ring: Parameters, tier: Tier, s: Scaling) -> tuple[float, float]:
    """(room, hiding): what is left of half a unit, and the smaller of two ratios over what they
    should be: of the flood to what it must hide, and of its variance to that of (e + ρ)·u, which
    the client knows but for u. A scaling is sound if room > 0 and hiding >= 1."""
    if s.unit < 1 or (2 * layer.bound + 1) * s.unit >= ring.prime:
        return -1.0, 0.0
    weights = weight_noise(layer, s.drop_up)
    total = s.flood + weights / ring.dropped
    total += answer_noise(layer, ring, s.drop_key, s.drop_c1, s.drop_c0)
    flood = s.flood * ring.dropped
    hiding = flood / (weights * 2 ** HIDING_BITS[tier])
    blinding = flood**2 / (3 * BLINDING * key_variance(layer, ring, s.drop_key))
    return (s.unit - 1) / 2 - total, min(hiding, blinding)


def distance(layer: Layer, ring: Parameters, s: Scaling, coefficients: int) -> float:
    """Statistical distance that the weights' share of the errors can make in an answer of
    ``coefficients`` wanted ones: V / (2·flood) in each, V as ``weight_noise``."""
    return coefficients * weight_noise(layer, s.drop_up) / (2 * s.flood * ring.dropped)


def choose(
    layer: Layer, ring: Parameters, tier: Tier, coefficients: tuple[int, int, int, int]
) -> Scaling | None:
    """The scaling that sends the fewest bits, or None where nothing is exact and hides enough.

    coefficients: how many are sent of c0 upward, of the key, of c1 and of c0 downward.
    """
    unit = (ring.prime - 1) // (2 * layer.bound + 1)
    if unit < 256:
        return None
    bits, half = unit.bit_length(), (unit - 1) / 2
    single = ring.dropped == 1
    # What takes all of half a unit is too coarse; the best lies a few bits below.
    deepest = _deepest(bits, half, lambda drop: answer_noise(layer, ring, 0, drop, 0))
    # Upward rounding and the flood share what the rest leaves, in the ratio the tier asks.
    upward = [weight_noise(layer, drop) for drop in range(bits if single else 1)]
    share, dropped, (n_up, n_key, n_c1, n_c0) = (
        2 ** HIDING_BITS[tier] + 1,
        ring.dropped,
        coefficients,
    )
    last = [(drop_c0, _own(ring, drop_c0)) for drop_c0 in range(bits - 7, bits - 2)]
    found: list[tuple[int, float, tuple[int, int, int, int]]] = []
    for drop_c1 in range(max(deepest - 4, 0), deepest + 1):
        for drop_key in range(max(drop_c1 - 4, 0), drop_c1 + 1) if single else (0,):
            spread = _spread(layer, ring, drop_key, drop_c1)
            for drop_c0, own in last:
                left = half - (spread + own)
                drop_up = bisect_right(upward, 0.99 * left * dropped / share) - 1
                if drop_up >= 0:
                    saved = n_up * drop_up + n_key * drop_key + n_c1 * drop_c1 + n_c0 * drop_c0
                    found.append((saved, left, (drop_up, drop_key, drop_c1, drop_c0)))
    found.sort(key=lambda entry: -entry[0])  # stable: the first of equals stays first
    for _, left, drops in found:
        made = Scaling(unit, *drops, _round_down(left - upward[drops[0]] / dropped))
        room, hiding = margin(layer, ring, tier, made)
        if room > 0 and hiding >= 1:
            return made
    return None


def _deepest(bits: int, limit: float, noise: Callable[[int], float]) -> int:
    """Most bits to drop, fewer than ``bits``, so that the noise stays within the limit."""
    low, high = 0, bits - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if noise(middle) <= limit else (low, middle - 1)
    return low


def _round_down(value: float) -> int:
    """To 8 significant bits, so that another machine's last digits do not change a plan."""
    whole = max(int(value), 1)
    shift = max(whole.bit_length() - 8, 0)
    return whole >> shift << shift


def _largest_rounding(drop: int) -> float:
    """Values stand for the middle of 2**drop, so the error is at most half of it."""
    return 2.0 ** (drop - 1) if drop else 0.0


def _rounding_variance(drop: int) -> float:
    """Proxy variance of that error around its mean of 1/2: uniform, hence strictly sub-Gaussian."""
    return 4.0**drop / 12 if drop else 0.0
