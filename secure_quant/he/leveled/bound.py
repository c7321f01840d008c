"""Bounds of values, proven, and of errors, with a chance of failure below 2^-40.

Values: interval arithmetic from the input bound. Errors: each source is a polynomial with
independent coefficients of known variance v, whose N/2 slots have complex variance N·v; its
magnitude exceeds r·sqrt(N·v) in a slot with probability exp(-r²). Through the layers errors are
added up by their absolute values, never by their squares. ``docs/spec/leveled.md`` derives it.
"""

from __future__ import annotations

from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from secure_quant.he.leveled.model import LeveledModel

__all__ = ["ERROR_VARIANCE", "input_error", "naf", "output_error", "value_bounds"]

Float = NDArray[np.float64]
ERROR_VARIANCE = 10.5
"""Of a coefficient of a fresh error: 21 bits less 21 bits."""
FAILURE_BITS = 40
SOURCES = 64
"""More than there are sources of error in one inference."""
FLOAT_ERROR = 2.0**-44
"""Relative error of the transforms in float64, of 15 layers of butterflies, with room."""


def naf(step: int) -> tuple[int, ...]:
    """The non-adjacent form of a positive rotation, as SEAL splits it: 7 -> (-1, 8)."""
    terms, bit = [], 1
    while step:
        if step & 1:
            digit = 2 - (step & 3)
            terms.append(digit * bit)
            step -= digit
        step >>= 1
        bit <<= 1
    return tuple(terms)


def value_bounds(model: LeveledModel) -> list[Float]:
    """Per layer, the largest magnitude of each output before its square and of that square, for
    any input within the bound: [|y1|, |y1|², |y2|, …]."""
    bound = np.full(model.layers[0].weight.shape[1], model.input_bound)
    found: list[Float] = []
    for i, layer in enumerate(model.layers):
        if i:
            bound = bound**2
            found.append(bound)
        bound = np.abs(layer.matrix) @ bound + np.abs(layer.bias)
        found.append(bound)
    return found


def input_error(input_bound: float, degree: int, scale_bits: int) -> float:
    """Of a slot of a fresh encryption: its error, the rounding of its message, and float64."""
    return _slot(degree, ERROR_VARIANCE + 1 / 12, scale_bits) + input_bound * FLOAT_ERROR


def output_error(
    model: LeveledModel, degree: int, primes: tuple[int, ...], scale_bits: int
) -> float:
    """The largest error of any output of an inference, in units of the output."""
    rounding = _slot(degree, (1 + degree) / 12, scale_bits)  # of a rescaling; the key is ternary
    encoding = _slot(degree, 1 / 12, scale_bits)
    bound = np.full(model.layers[0].weight.shape[1], model.input_bound)
    error = np.full(len(bound), input_error(model.input_bound, degree, scale_bits))
    left = list(primes[:-1])
    for i, layer in enumerate(model.layers):
        if i:
            switch = _switch(degree, left, primes[-1], scale_bits, 1)
            error = 2 * bound * error + error**2 + switch + rounding
            bound = bound**2
            left.pop()
        matrix, width = np.abs(layer.matrix), 1 << (len(bound) - 1).bit_length()
        # One more for the encryption of zero that TenSEAL's sum starts with: its error, too, is
        # divided by the special prime and rounded.
        switches = 1 + sum(len(naf(step)) for step in range(1, max(width, 2)))
        # Diagonals are rounded one by one, so their errors add up by squares.
        spread = encoding * sqrt(float(((bound + error) ** 2).sum()))
        switch = _switch(degree, left, primes[-1], scale_bits, switches)
        bias = np.abs(layer.bias)
        error = matrix @ error + spread + switch + rounding + encoding
        bound = matrix @ bound + bias
        error += (bound + error) * FLOAT_ERROR
        left.pop()
    return float((error + bound * FLOAT_ERROR).max())


def _slot(degree: int, variance: float, scale_bits: int) -> float:
    """Bound of the magnitude in all slots, in units of a slot's value."""
    chances = log(degree / 2 * SOURCES) + FAILURE_BITS * log(2)
    return sqrt(chances * degree * variance) / 2.0**scale_bits


def _switch(degree: int, primes: list[int], special: int, scale_bits: int, count: int) -> float:
    """``count`` key switchings at the square of the scale: digits below each prime times a fresh
    error, divided by the special prime and rounded."""
    digits = sum(float(prime) ** 2 for prime in primes) / 3
    variance = degree * ERROR_VARIANCE * digits / float(special) ** 2 + (1 + degree) / 12
    return _slot(degree, count * variance, 2 * scale_bits)
