"""How far a share that was counted on some samples may lie from that of all there are."""

from __future__ import annotations

from statistics import NormalDist

__all__ = ["wilson"]


def wilson(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Ends of the interval of Wilson's score for ``share``, of ``count`` >= 1 samples.

    It stays within 0 to 1 and says something at 0 and 1 too. Source: E. B. Wilson, Probable
    inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = share * (1 - share) / count + z * z / (4 * count * count)
    half = z * spread**0.5 / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)
