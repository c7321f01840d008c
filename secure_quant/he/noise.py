"""How large the error of a response can be, and the most that may be rounded off it.

All bounds hold together, for every coefficient of a call, but with probability below 2**-40 over
the client's and the server's randomness. They use public numbers alone: ``docs/spec/ckks.md``
derives each line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from secure_quant.he.parameters import Parameters, Tier

__all__ = ["ERROR_BOUND", "ERROR_VARIANCE", "HIDING_BITS", "Layer", "Scaling", "choose", "margin"]

ERROR_BOUND = 21
ERROR_VARIANCE = ERROR_BOUND / 2
"""Errors are centred binomial: 21 bits less 21 bits, as in SEAL."""

HIDING_BITS: dict[Tier, int] = {"T1": 8, "T1-strict": 44}
"""The flood is at least 2**bits times all that depends on the weights."""

_TAIL_BITS = 42  # four events of 2**-42 each: below 2**-40 together


@dataclass(frozen=True, slots=True)
class Layer:
    """What a bound needs to know: ``outputs`` wanted coefficients in one call, each at most
    ``bound`` in magnitude; rows of at most ``row_l1`` = Σ|w|; ``rows`` of them in one response."""

    outputs: int
    bound: int
    row_l1: int
    rows: int

    @property
    def tail(self) -> float:
        """r: a sum of proxy variance v exceeds r·√v in one of the outputs with probability at
        most 2**-42."""
        exact = math.sqrt(2 * math.log(2) * (1 + math.log2(self.outputs) + _TAIL_BITS))
        return math.ceil(64 * exact) / 64  # the same on every machine

    @property
    def l1(self) -> int:
        """Σ|w| over all weight polynomials that make one response."""
        return self.rows * self.row_l1

    @property
    def l2(self) -> float:
        """Upper bound of sqrt(Σ w²): |w| <= 128."""
        return math.sqrt(128 * self.l1)


@dataclass(frozen=True, slots=True)
class Scaling:
    """scale: an integer y travels as y·2**scale (times the dropped prime, where there is one).
    drop_*: low bits left out of c0 upward, of the public key, of c1 and c0 downward.
    flood: noise is uniform in [-flood, flood) (times the dropped prime)."""

    scale: int
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


def key_noise(layer: Layer, ring: Parameters, drop: int) -> float:
    """Bound on the error of a fresh public-key encryption of zero: (e + ρ)·u + e0 + e1·s."""
    if ring.dropped > 1:  # the key is a multiple of the second prime, which takes its residue away
        proxy, mean = (ring.dropped / 2) ** 2 / 3, 0.0
    else:
        proxy, mean = _rounding_variance(drop), ring.degree / 2 if drop else 0.0
    spread = math.sqrt((ERROR_VARIANCE + proxy) * ring.degree)
    other = ERROR_BOUND + layer.tail * math.sqrt(ERROR_VARIANCE * ring.degree)
    return layer.tail * spread + mean + other


def answer_noise(layer: Layer, ring: Parameters, drop_c1: int, drop_c0: int) -> float:
    """Bound on the error of rescaling and of the bits left out downward: ρ0 + ρ1·s."""
    rescaled = 1 / 12 if ring.dropped > 1 else 0.0
    proxy = rescaled + _rounding_variance(drop_c1)
    mean = ring.degree / 2 if drop_c1 else 0.0
    own = _largest_rounding(drop_c0) + (0.5 if ring.dropped > 1 else 0.0)
    return layer.tail * math.sqrt(proxy * ring.degree) + mean + own


def margin(layer: Layer, ring: Parameters, tier: Tier, s: Scaling) -> tuple[float, float]:
    """(room, hiding): what is left of half a scale step, and the ratio of the flood to what it
    must hide over the ratio the tier asks. A scaling is sound if room > 0 and hiding >= 1."""
    weights = weight_noise(layer, s.drop_up)
    inner = weights + key_noise(layer, ring, s.drop_key)
    total = s.flood + inner / ring.dropped + answer_noise(layer, ring, s.drop_c1, s.drop_c0)
    hiding = s.flood * ring.dropped / (weights * 2 ** HIDING_BITS[tier])
    fits = (2 * layer.bound + 1) * 2**s.scale < ring.prime
    return (2 ** (s.scale - 1) - total if fits else -1.0), hiding


def choose(
    layer: Layer, ring: Parameters, tier: Tier, coefficients: tuple[int, int, int, int]
) -> Scaling | None:
    """The scaling that sends the fewest bits, or None where nothing is exact and hides enough.

    coefficients: how many are sent of c0 upward, of the key, of c1 and of c0 downward.
    """
    scale = (ring.prime // (2 * layer.bound + 1)).bit_length() - 1
    if scale < 8:
        return None
    half = 2.0 ** (scale - 1)
    single = ring.dropped == 1
    drop_c0 = scale - 6  # 2**-6 of half a step
    # What takes all of half a step is too coarse; the best lies a few bits below.
    deep_c1 = _deepest(scale, half, lambda drop: answer_noise(layer, ring, drop, drop_c0))
    deep_key = _deepest(scale, half, lambda drop: key_noise(layer, ring, drop)) if single else 0
    least = weight_noise(layer, 0)
    best: tuple[int, Scaling] | None = None
    for drop_c1 in range(max(deep_c1 - 5, 0), deep_c1 + 1):
        for drop_key in range(max(deep_key - 5, 0), deep_key + 1):
            answer = answer_noise(layer, ring, drop_c1, drop_c0)
            left = half - answer - key_noise(layer, ring, drop_key) / ring.dropped
            # Flood and weight noise share what is left in the ratio the tier asks.
            allowed = 0.99 * left * ring.dropped / (2 ** HIDING_BITS[tier] + 1)
            if least > allowed:
                continue
            drop_up = _deepest(scale, allowed, partial(weight_noise, layer)) if single else 0
            flood = _round_down(left - weight_noise(layer, drop_up) / ring.dropped)
            found = Scaling(scale, drop_up, drop_key, drop_c1, drop_c0, flood)
            room, hiding = margin(layer, ring, tier, found)
            drops = (drop_up, drop_key, drop_c1, drop_c0)
            saved = sum(n * drop for n, drop in zip(coefficients, drops, strict=True))
            if room > 0 and hiding >= 1 and (best is None or saved > best[0]):
                best = (saved, found)
    return None if best is None else best[1]


def _deepest(scale: int, limit: float, noise: Callable[[int], float]) -> int:
    """Most bits to drop so that the noise stays within the limit."""
    low, high = 0, scale - 1
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
