"""Values in slots <-> coefficients of a polynomial, in float64.

Slot j is the evaluation at zeta^(3^j), zeta = exp(i·pi/degree), and its conjugate's at
zeta^(-3^j). Source: Cheon, Kim, Kim and Song (2017), with SEAL's generator 3.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["from_slots", "to_slots"]

Float = NDArray[np.float64]


def from_slots(values: Float) -> Float:
    """float64[degree/2] -> coefficients, float64[degree]."""
    degree = 2 * len(values)
    places, twist = _tables(degree)
    roots = np.zeros(degree, np.complex128)
    roots[places] = values
    roots[degree - 1 - places] = values  # the conjugates of real numbers
    made: Float = (np.fft.fft(roots) / degree * twist.conj()).real
    return made


def to_slots(coefficients: Float, count: int) -> Float:
    """Real parts of the first ``count`` slots, float64[count]."""
    degree = len(coefficients)
    places, twist = _tables(degree)
    roots = np.fft.ifft(coefficients * twist) * degree
    made: Float = roots.real[places[:count]]
    return made


@lru_cache(maxsize=4)
def _tables(degree: int) -> tuple[NDArray[np.int64], NDArray[np.complex128]]:
    """(t of each slot, where its root is zeta^(2t+1); zeta^k for each coefficient)"""
    exponent, places = 1, np.empty(degree // 2, np.int64)
    for j in range(degree // 2):
        places[j] = exponent // 2
        exponent = 3 * exponent % (2 * degree)
    return places, np.exp(1j * np.pi / degree * np.arange(degree))
