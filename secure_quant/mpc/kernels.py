"""Compiled loops over elements: bits in words, lookups, and the dealer's scatter.

Every kernel has its signature fixed, so that nothing is compiled while a request runs; ``warm``
imports this module. Offsets count bits from the start of a word array, lowest bit first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types

__all__ = ["add_opened", "kernel", "lookup", "pack", "xor_opened"]

F = TypeVar("F", bound=Callable[..., Any])

U = types.uint64
I = types.int64  # noqa: E741 - beside U
IN = types.Array(U, 1, "C", readonly=True)
IN2 = types.Array(U, 2, "C", readonly=True)
OUT = types.Array(U, 1, "C")

ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
ZERO = np.uint64(0)
ONE = np.uint64(1)


def kernel(signature: Any) -> Callable[[F], F]:
    """numba.njit with a fixed signature, typed as the function itself."""

    def wrap(function: F) -> F:
        return cast(
            "F", numba.njit(signature, cache=True, nogil=True, error_model="numpy")(function)
        )

    return wrap


@kernel(U(IN, I, I))
def read(words: Any, place: Any, bits: int) -> Any:
    """``bits`` (1 to 64) bits at ``place``."""
    w, s = np.uint64(place) >> np.uint64(6), np.uint64(place) & np.uint64(63)
    # No branch on where the bits end: it could not be predicted. Past the last word the same word
    # is read twice, whose bits then fall outside the mask.
    after = min(w + ONE, np.uint64(words.shape[0] - 1))
    made = (words[w] >> s) | ((words[after] << ONE) << (np.uint64(63) - s))
    return made & (ONES >> np.uint64(64 - bits))


@kernel(types.void(OUT, I, I, U))
def flip(words: Any, place: int, bits: int, value: Any) -> None:
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


@kernel(U(U))
def parity(x: Any) -> Any:
    x ^= x >> np.uint64(32)
    x ^= x >> np.uint64(16)
    x ^= x >> np.uint64(8)
    x ^= x >> np.uint64(4)
    return (np.uint64(0x6996) >> (x & np.uint64(15))) & ONE


@kernel(U(IN, I, I))
def parity_between(words: Any, start: int, stop: int) -> Any:
    """Parity of the bits at start, ..., stop - 1."""
    if stop <= start:
        return ZERO
    first = np.uint64(start) >> np.uint64(6)
    last = np.uint64(stop - 1) >> np.uint64(6)
    head = ONES << np.uint64(start & 63)
    tail = ONES >> np.uint64(63 - ((stop - 1) & 63))
    if first == last:
        return parity(words[first] & head & tail)
    made = words[first] & head
    w = first + ONE
    while w < last:
        made ^= words[w]
        w += ONE
    return parity(made ^ (words[last] & tail))


@kernel(U(IN, I, I, I, I))
def parity_around(words: Any, base: int, size: int, start: int, length: int) -> Any:
    """Parity of ``length`` <= size bits from ``start`` on around a circle of ``size`` bits."""
    if start + length <= size:
        return parity_between(words, base + start, base + start + length)
    return parity_between(words, base + start, base + size) ^ parity_between(
        words, base, base + start + length - size
    )


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


@kernel(U(IN, I, I, I, IN2, OUT, OUT))
def lookup(
    words: Any, base: int, width: int, turn: Any, planes: Any, scratch: Any, sums: Any
) -> Any:
    """XOR_i e_i · X[(turn - i) mod 2^width] for the 2^width shared bits e at ``base``.

    planes[:, b] holds bit b of X[-j] at bit j, so that e turned by ``turn`` meets it in place.
    scratch, sums: a word for each of planes' rows and columns.
    """
    if width < 6:
        size = 1 << width
        e = read(words, base, size)
        if turn > 0:
            e = (e >> np.uint64(turn)) | (e << np.uint64(size - turn))
        e &= ONES >> np.uint64(64 - size)
        made = ZERO
        for b in range(planes.shape[1]):
            made |= parity(e & planes[0, b]) << np.uint64(b)
        return made
    count = np.uint64(1 << (width - 6))
    first, w, s = np.uint64(base >> 6), np.uint64(turn >> 6), np.uint64(turn & 63)
    around, back = count - ONE, np.uint64(64) - s
    if s == ZERO:
        for j in range(count):
            scratch[j] = words[first + ((w + j) & around)]
    else:
        for j in range(count):
            scratch[j] = (words[first + ((w + j) & around)] >> s) | (
                words[first + ((w + j + ONE) & around)] << back
            )
    rows = planes.shape[1]
    sums[:] = ZERO
    for j in range(np.int64(count)):
        e = scratch[j]
        for b in range(rows):
            sums[b] ^= e & planes[j, b]
    made = ZERO
    for b in range(rows):
        x = sums[b]
        x ^= x >> np.uint64(32)
        x ^= x >> np.uint64(16)
        x ^= x >> np.uint64(8)
        x ^= x >> np.uint64(4)
        x ^= x >> np.uint64(2)
        x ^= x >> ONE
        made |= (x & ONE) << np.uint64(b)
    return made


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
