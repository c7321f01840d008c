"""Values in slots <-> coefficients of a polynomial, in float64.

Slot j is the evaluation at zeta^(3^j), zeta = exp(i·pi/degree), and its conjugate's at
zeta^(-3^j). Source: Cheon, Kim, Kim and Song (2017), with SEAL's generator 3.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["all_slots", "from_slots"]

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


def all_slots(coefficients: Float) -> NDArray[np.complex128]:
    """Coefficients, float64[degree] -> complex128[degree/2]; real but for errors."""
    degree = len(coefficients)
    places, twist = _tables(degree)
    made: NDArray[np.complex128] = np.fft.ifft(coefficients * twist)[places] * degree
    return made


@lru_cache(maxsize=4)
def _tables(degree: int) -> tuple[NDArray[np.int64], NDArray[np.complex128]]:
    """(t of each slot, where its root is zeta^(2t+1); zeta^k for each coefficient)"""
    exponent, places = 1, np.empty(degree // 2, np.int64)
    for j in range(degree // 2):
        places[j] = exponent // 2
        exponent = 3 * exponent % (2 * degree)
    return places, np.exp(1j * np.pi / degree * np.arange(degree))
