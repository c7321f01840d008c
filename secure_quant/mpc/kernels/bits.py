"""Compiled loops over elements: bits in words, lookups, and the dealer's scatter.

Every kernel has its signature fixed, so that nothing is compiled while a request runs; ``warm``
imports this module. Offsets count bits from the start of a word array, lowest bit first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache as once
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from secure_quant.mpc.kernels.simd import LANES, blocks, parities, popcount

__all__ = [
    "add_opened",
    "compared",
    "kernel",
    "lookup",
    "pack",
    "plane_table",
    "variables",
    "xor_opened",
]

_LOG = logging.getLogger("secure_quant.mpc")

F = TypeVar("F", bound=Callable[..., Any])

U = types.uint64
I = types.int64  # noqa: E741 - beside U
IN = types.Array(U, 1, "C", readonly=True)
INT = types.Array(I, 1, "C", readonly=True)
INT2 = types.Array(I, 2, "C", readonly=True)
IN2 = types.Array(U, 2, "C", readonly=True)
IN3 = types.Array(U, 3, "C", readonly=True)
OUT = types.Array(U, 1, "C")

ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
ZERO = np.uint64(0)
ONE = np.uint64(1)


def kernel(signature: Any) -> Callable[[F], F]:
    """numba.njit with a fixed signature, typed as the function itself."""

    def wrap(function: F) -> F:
        try:
            return cast("F", _compiled(signature, function, cache=True))
        except (RuntimeError, OSError):  # no folder to keep it in, or a full one
            _tell_once()
            return cast("F", _compiled(signature, function, cache=False))

    return wrap


def _compiled(signature: Any, function: Any, *, cache: bool) -> Any:
    return numba.njit(signature, cache=cache, nogil=True, error_model="numpy")(function)


@once
def _tell_once() -> None:
    _LOG.warning(
        "compiled loops cannot be kept on disk, so each start takes longer; set NUMBA_CACHE_DIR to "
        "a folder that can be written"
    )


@kernel(U(IN, I, I))
def read(words: Any, place: Any, bits: int) -> Any:
    """``bits`` (1 to 64) bits at ``place``."""
    w, s = np.uint64(place) >> np.uint64(6), np.uint64(place) & np.uint64(63)
    # No branch on where the bits end: it could not be predicted. Past the last word the same word
    # is read twice, whose bits then fall outside the mask.
    after = min(w + ONE, np.uint64(words.shape[0] - 1))
    made = (words[w] >> s) | ((words[after] << ONE) << (np.uint64(63) - s))
    return made & (ONES >> np.uint64(64 - bits))


@kernel(U(IN, I, I))
def aligned(words: Any, place: Any, bits: int) -> Any:
    """As ``read``, where ``bits`` is a power of two and ``place`` a multiple of it."""
    word = words[np.uint64(place) >> np.uint64(6)] >> (np.uint64(place) & np.uint64(63))
    return word & (ONES >> np.uint64(64 - bits))


@kernel(types.void(OUT, I))
def flip_one(words: Any, place: Any) -> None:
    """The bit at ``place``."""
    words[np.uint64(place) >> np.uint64(6)] ^= ONE << (np.uint64(place) & np.uint64(63))


@kernel(types.void(OUT, I, I, U))
def flip(words: Any, place: Any, bits: int, value: Any) -> None:
    """XOR ``value`` (< 2^bits) into the bits at ``place``."""
    w, s = np.uint64(place) >> np.uint64(6), np.uint64(place) & np.uint64(63)
    after = min(w + ONE, np.uint64(words.shape[0] - 1))
    words[w] ^= value << s
    words[after] ^= (value >> ONE) >> (np.uint64(63) - s)


@kernel(types.void(OUT, I, I, U))
def correct(words: Any, place: int, bits: int, value: Any) -> None:
    """Replace the element x of Z_2^bits at ``place`` by value - x: the other share of value."""
    old = read(words, place, bits)
    flip(words, place, bits, old ^ ((value - old) & (ONES >> np.uint64(64 - bits))))


@kernel(U(IN, I, I, I))
def compared(words: Any, base: int, width: int, digit: Any) -> Any:
    """From 2^width shared bits at ``base``, the one-hot of r: [digit < r] + 2·[digit = r]."""
    if width <= 6:
        rest = read(words, base, 1 << width) >> np.uint64(digit)
        return (popcount(rest >> ONE) & ONE) | ((rest & ONE) << ONE)
    first, last = (
        np.uint64(base + digit) >> np.uint64(6),
        np.uint64(base >> 6) + (ONE << np.uint64(width - 6)),
    )
    rest = words[first] >> np.uint64(digit & 63)
    hit, made = rest & ONE, rest >> ONE
    w = first + ONE
    while w < last:
        made ^= words[w]
        w += ONE
    return (popcount(made) & ONE) | (hit << ONE)


@kernel(U(IN, INT2, U, I))
def variables(dealt: Any, digits: Any, c: Any, i: int) -> Any:
    """Own share of the variables of element ``i``'s borrow, in the order of ``Borrow``, from the
    digits of the public ``c``."""
    word, place, fill = ZERO, 0, 0
    for j in range(digits.shape[0]):
        bits = digits[j, 0]
        digit = np.int64(c >> np.uint64(place)) & ((1 << bits) - 1)
        base = digits[j, 1] + (i << bits)
        if j == 0:
            word |= aligned(dealt, base + digit, 1)
            fill += 1
        elif bits <= 6:
            rest = aligned(dealt, base, 1 << bits) >> np.uint64(digit)
            word |= ((popcount(rest >> ONE) & ONE) | ((rest & ONE) << ONE)) << np.uint64(fill)
            fill += 2
        else:
            word |= compared(dealt, base, bits, digit) << np.uint64(fill)
            fill += 2
        place += bits
    return word


@kernel(types.void(IN, I, OUT))
def pack(values: Any, bits: int, words: Any) -> None:
    """values (< 2^bits) end to end into zeroed ``words``."""
    done, fill, w = ZERO, 0, 0
    for i in range(values.shape[0]):
        value = values[i]
        done |= value << np.uint64(fill)
        fill += bits
        if fill >= 64:
            words[w] = done
            w += 1
            fill -= 64
            done = value >> np.uint64(bits - fill) if fill > 0 else ZERO
    if fill > 0:
        words[w] = done


@kernel(types.void(IN, I, OUT))
def add_opened(words: Any, bits: int, values: Any) -> None:
    """values += the peer's packed ones, mod 2^bits."""
    keep = ONES >> np.uint64(64 - bits)
    for i in range(values.shape[0]):
        values[i] = (values[i] + read(words, i * bits, bits)) & keep


@kernel(types.void(IN, I, OUT))
def xor_opened(words: Any, bits: int, values: Any) -> None:
    """values ^= the peer's packed ones."""
    for i in range(values.shape[0]):
        values[i] ^= read(words, i * bits, bits)


# ---------------------------------------------------------------------------------------- lookups


block2, block4, block8 = blocks(2), blocks(4), blocks(8)


@kernel(U(IN, I, I, I, IN3))
def lookup(words: Any, base: int, width: int, turn: Any, planes: Any) -> Any:
    """XOR_i e_i · X[(turn - i) mod 2^width] for the 2^width shared bits e at ``base``.

    planes: ``plane_table`` of X, so that e turned by ``turn`` meets it in place.
    """
    made, groups = ZERO, planes.shape[0]
    if width <= 6:
        size = np.uint64(1 << width)
        e, by = read(words, base, 1 << width), np.uint64(turn)
        e = (e >> by) | ((e << ONE) << (size - ONE - by))
        for g in range(groups):
            made |= parities(e, planes, np.uint64(g)) << np.uint64(8 * g)
        return made
    count = ONE << np.uint64(width - 6)
    first, shift = np.uint64(base) >> np.uint64(6), np.uint64(turn) & np.uint64(63)
    start = count - (np.uint64(turn) >> np.uint64(6))
    for g in range(groups):
        row, got = start + np.uint64(g) * (count + count), ZERO
        if width == 7:
            got = block2(words, first, words[first], shift, planes, row)
        elif width == 8:
            got = block4(words, first, words[first], shift, planes, row)
        else:
            k = ZERO
            while k < count:
                after = words[first + ((k + np.uint64(8)) & (count - ONE))]
                got ^= block8(words, first + k, after, shift, planes, row + k)
                k += np.uint64(8)
        made |= got << np.uint64(8 * g)
    return made


def plane_table(entries: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """What ``lookup`` reads for X = entries, uint64[2^W], of ``bits`` bits each.

    uint64[groups of 8 bits, rows, 8]. Column b has bit b of X[-j] at bit j. Rows stand there twice
    unless there is but one, so that what is turned need not wrap.
    """
    size, groups = len(entries), -(-bits // LANES)
    turned = entries[-np.arange(size) % size]
    planes = turned >> np.arange(LANES * groups, dtype=np.uint64)[:, None] & ONE
    padded = np.zeros((LANES * groups, max(size, 64)), np.uint64)
    padded[:, :size] = planes
    grouped = padded.reshape(groups, LANES, -1, 64) << np.arange(64, dtype=np.uint64)
    rows = np.bitwise_or.reduce(grouped, axis=3).swapaxes(1, 2)  # [groups, words, 8]
    if size > 64:
        rows = np.concatenate([rows, rows], axis=1)
    return np.ascontiguousarray(rows)


@kernel(types.void(OUT, I, I, I))
def prefix(words: Any, base: int, width: int, length: Any) -> None:
    """Flip the first ``length`` of the 2^width bits at ``base``."""
    size = 1 << width
    if size <= 64:
        if length > 0:
            flip(words, base, size, ONES >> np.uint64(64 - length))
        return
    w = base >> 6
    whole = length >> 6
    for j in range(whole):
        words[w + j] ^= ONES
    if length & 63:
        words[w + whole] ^= ONES >> np.uint64(64 - (length & 63))
