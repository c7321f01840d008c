"""The kernels as gates call them: a whole batch a call.

This is the border behind which another backend could stand: arrays [batch, elements] of uint64,
one vector of dealt words per sample, public constants, and new arrays back. Nothing else of this
package is called by gates, but for the dealer's loops, which deal one sample at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secure_quant.mpc.kernels import (
    bits,
    cases,
    lookups,
    maxima,
    products,
    ramps,
    selection,
    shifts,
    tallies,
)

__all__ = [
    "add_products", "chosen", "columns_at", "compare", "compare_digits", "join_digits", "lift",
    "lift_ramp", "lift_shift", "lift_v3", "lift_v5", "open_ramp", "open_shift", "open_v3",
    "open_v4", "open_v5", "pack", "select", "select_ramp", "select_v4", "tallied", "unpack",
]  # fmt: skip

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]


def pack(values: Words, width: int) -> Words:
    """uint64[n] below 2^width -> words that hold them end to end, lowest bit first."""
    words = np.zeros((values.size * width + 63) // 64, np.uint64)
    bits.pack(values, width, words)
    return words


def unpack(words: Words, width: int, onto: Words, *, xor: bool) -> None:
    """Adds (mod 2^width) or XORs the elements of ``words`` onto uint64[n], in place."""
    (bits.xor_opened if xor else bits.add_opened)(words, width, onto)


def columns_at(places: Ints) -> Ints:
    """Places of columns as ``add_products`` takes them: the last repeated."""
    missing = -len(places) % products.COLUMNS
    return np.concatenate([places, np.repeat(places[-1:], missing)])


def add_products(
    left: NDArray[np.uint32] | Words, data: Words, inner_at: Ints, column_at: Ints,
    per_sample: int, per_group: int, onto: Words,
) -> None:  # fmt: skip
    """See ``products``: a left factor, and where the right one lies in a vector."""
    products.add_products(left, data, inner_at, column_at, per_sample, per_group, onto)


def chosen(table: Words, bits: Words) -> Words:
    """The XOR of the table's rows, uint64[rows, words], at which a vector has a bit, for each of
    uint64[n, words of rows]: uint64[n, words]."""
    made = np.zeros((len(bits), table.shape[1]), np.uint64)
    selection.chosen(table, np.ascontiguousarray(bits), made)
    return made


def open_v3(
    c: Words, dealt: Sequence[Words], free: Words, constants: Ints, places: Ints,
    planes: Words, windows: Words,
) -> Words:  # fmt: skip
    """Own share of every looked-up number, masked: uint64[batch, n]."""
    made = np.empty_like(c)
    for i, words in enumerate(dealt):
        lookups.open_v3(c[i], words, free[i], constants, places, planes, windows, made[i])
    return made


def lift_v3(
    opened: Words, dealt: Sequence[Words], masks: Words, party: int, constants: Ints, places: Ints
) -> Words:
    """Own share of the masked result: uint64[batch, n]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        lookups.lift_v3(opened[i], words, masks[i], party, constants, places, made[i])
    return made


def open_v5(
    c: Words, dealt: Sequence[Words], free: Words, constants: Ints, places: Ints, digits: Ints,
    planes: Words, windows: Words,
) -> Words:  # fmt: skip
    """Own share of both numbers and of what chooses, masked: uint64[batch, n]."""
    made = np.empty_like(c)
    for i, words in enumerate(dealt):
        cases.open_v5(c[i], words, free[i], constants, places, digits, planes, windows, made[i])
    return made


def lift_v5(
    opened: Words, dealt: Sequence[Words], masks: Words, kappa: Words, party: int, constants: Ints,
    places: Ints,
) -> Words:  # fmt: skip
    """Own share of the masked result: uint64[batch, n]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        cases.lift_v5(opened[i], words, masks[i], kappa, party, constants, places, made[i])
    return made


def open_v4(
    c: Words, dealt: Sequence[Words], free: Words, constants: Ints, places: Ints, digits: Ints,
    planes: Words, windows: Words,
) -> tuple[Words, Words]:  # fmt: skip
    """(own share of every looked-up number, masked; own share of [above the table]), each
    uint64[batch, n]."""
    made, high = np.empty_like(c), np.zeros_like(c)
    for i, words in enumerate(dealt):
        lookups.open_v4(
            c[i], words, free[i], constants, places, digits, planes, windows, high[i], made[i]
        )
    return made, high


def select_v4(
    opened: Words, dealt: Sequence[Words], free: Words, high: Words, kappa: Words, party: int,
    constants: Ints, places: Ints,
) -> Words:  # fmt: skip
    """Own share of the number chosen by the borrow: uint64[batch, n]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        lookups.select_v4(
            opened[i], words, free[i], high[i], kappa, party, constants, places, made[i]
        )
    return made


def open_ramp(
    c: Words, dealt: Sequence[Words], free: Words, constants: Ints, places: Ints, digits: Ints,
    windows: Words,
) -> Words:  # fmt: skip
    """Own share of every looked-up bit of a ramp, masked: uint64[batch, n]."""
    made = np.empty_like(c)
    for i, words in enumerate(dealt):
        ramps.open_ramp(c[i], words, free[i], constants, places, digits, windows, made[i])
    return made


def select_ramp(
    opened: Words, dealt: Sequence[Words], free: Words, lower: Words, whole: Words, party: int,
    constants: Ints, places: Ints,
) -> Words:  # fmt: skip
    """Own share of the bits that the borrows make, masked: uint64[batch, n]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        ramps.select_ramp(
            opened[i], words, free[i], lower, whole, party, constants, places, made[i]
        )
    return made


def lift_ramp(
    c: Words, first: Words, opened: Words, dealt: Sequence[Words], masks: Words, party: int,
    constants: Ints, places: Ints,
) -> Words:  # fmt: skip
    """Own share of the ramp's value in the output's ring, masked: uint64[batch, n]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        ramps.lift_ramp(
            c[i], first[i], opened[i], words, masks[i], party, constants, places, made[i]
        )
    return made


def open_shift(
    c: Words, dealt: Sequence[Words], free: Words, constants: Ints, digits: Ints
) -> Words:
    """Own share of the borrow's variables of a shift, masked: uint64[batch, n]."""
    made = np.empty_like(c)
    for i, words in enumerate(dealt):
        shifts.open_shift(c[i], words, free[i], constants, digits, made[i])
    return made


def lift_shift(
    c: Words, opened: Words, dealt: Sequence[Words], masks: Words, coefficients: Words, party: int,
    constants: Ints,
) -> Words:  # fmt: skip
    """Own share of what is shifted, in the output's ring, masked: uint64[batch, n]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        shifts.lift_shift(c[i], opened[i], words, masks[i], coefficients, party, constants, made[i])
    return made


def lift(
    opened: Words, dealt: Sequence[Words], masks: Words, party: int, width: int, ring: int,
    floor: int, place: int,
) -> Words:  # fmt: skip
    """Numbers of ``width`` opened bits, counted from ``floor``: own share of them in Z_2^ring,
    masked, uint64[batch, n]. place: first bit of what was dealt for it."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        lookups.lift(opened[i], words, masks[i], party, width, ring, floor, place, made[i])
    return made


def compare(
    values: Words, dealt: Sequence[Words], free: Words, arity: int, width: int, tables: int
) -> Words:
    """values [batch, maxima · arity] -> own share of every comparison, masked: [batch, maxima]."""
    made = np.empty((len(values), free.shape[1]), np.uint64)
    for i, words in enumerate(dealt):
        maxima.compare(values[i], words, free[i], arity, width, tables, made[i])
    return made


def compare_digits(
    values: Words, dealt: Sequence[Words], free: Words, arity: int, digits: Ints, place: int
) -> Words:
    """As ``compare``, the variables of every comparison's borrow."""
    made = np.empty((len(values), free.shape[1]), np.uint64)
    for i, words in enumerate(dealt):
        maxima.compare_digits(values[i], words, free[i], arity, digits, place, made[i])
    return made


def join_digits(
    opened: Words, dealt: Sequence[Words], free: Words, arity: int, digits: Ints, kappa: Words,
    place: int, party: int,
) -> Words:  # fmt: skip
    """Own share of every comparison, masked, from its opened variables: [batch, maxima]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        maxima.join_digits(opened[i], words, free[i], arity, digits, kappa, place, party, made[i])
    return made


def select(
    opened: Words, values: Words, own: Words, dealt: Sequence[Words], free: Words, party: int,
    arity: int, width: int, ring: int, products: int,
) -> Words:  # fmt: skip
    """Own share of the masked maxima: uint64[batch, maxima]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        maxima.SELECT[arity](
            opened[i], values[i], own[i], words, free[i], party, width, ring, products, made[i]
        )
    return made


def tallied(opened: Words, dealt: Sequence[Words], place: int, width: int, ring: int) -> Words:
    """Own share of [opened = ρ] mod 2^ring, from one-hots of ρ: uint64[batch, n]."""
    made = np.empty_like(opened)
    for i, words in enumerate(dealt):
        tallies.tallied(opened[i], words, place, width, ring, made[i])
    return made
