"""Compiled loops of a Requantize that only rounds: what each party looks up of the borrow and
lifts, and what is dealt.

``consts`` are a gate's ShiftConstants, as an int64 vector; ``digits`` has the bits and the place of
each digit; ``free`` has one word of an element's own mask bits, of the variables of the borrow. An
element's lift lies from its first bit on: r >> s, each product of masks, the top bit of r.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from secure_quant.mpc.kernels.bits import (
    IN,
    IN2,
    INT,
    INT2,
    ONE,
    ONES,
    OUT,
    ZERO,
    I,
    flip,
    flip_one,
    kernel,
    prefix,
    read,
    variables,
)

__all__ = ["ShiftConstants", "deal_shift", "lift_shift", "open_shift"]


class ShiftConstants(NamedTuple):
    """Of one gate, as ``protocol.shifts`` defines them.

    shift: s. input_ring: k. variables, products: of the borrow. ring: bits of the output. above:
    bits of the top bit's share, 0 where it is not needed. floor: least number. step: from one to
    the next.
    """

    shift: int
    input_ring: int
    variables: int
    products: int
    ring: int
    above: int
    floor: int
    step: int


@kernel(types.NamedUniTuple(I, len(ShiftConstants._fields), ShiftConstants)(INT))
def constants(v: Any) -> ShiftConstants:
    """The fields by name, of int64[fields]."""
    return ShiftConstants(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])


@kernel(types.void(IN, IN, IN, INT, INT2, OUT))
def open_shift(c: Any, dealt: Any, free: Any, consts: Any, digits: Any, out: Any) -> None:
    """Own share of the borrow's variables, masked."""
    keep = ONES >> np.uint64(64 - constants(consts).variables)
    for i in range(c.shape[0]):
        out[i] = variables(dealt, digits, c[i], i) ^ (free[i] & keep)


@kernel(types.void(IN, IN, IN, IN, IN2, I, INT, OUT))
def lift_shift(
    c: Any, opened: Any, dealt: Any, masks: Any, coefficients: Any, party: int, consts: Any,
    out: Any,
) -> None:  # fmt: skip
    """Own share of floor + step·((c >> s) - (r >> s) - b + 2^(k-s)·[c < r]) + mask in the output's
    ring. opened: what the first round opened."""
    con = constants(consts)
    ring, count, above = con.ring, con.products, con.above
    size = (1 + count) * ring + above
    keep, one = ONES >> np.uint64(64 - ring), ONE if party == 0 else ZERO
    top, high = np.uint64(con.input_ring - 1), np.uint64(con.input_ring - con.shift)
    floor, step = np.uint64(con.floor), np.uint64(con.step)
    for i in range(c.shape[0]):
        place, p = i * size, np.int64(opened[i])
        made = one * ((c[i] >> np.uint64(con.shift)) - coefficients[p, 0])
        made -= read(dealt, place, ring)
        for j in range(count):
            place += ring
            by = coefficients[p, j + 1]
            if by != ZERO:
                made -= by * read(dealt, place, ring)
        if above > 0 and (c[i] >> top) == ZERO:
            made += read(dealt, place + ring, above) << high
        out[i] = (masks[i] + one * floor + step * made) & keep


@kernel(types.void(IN, IN, OUT, IN, INT, INT2))
def deal_shift(r: Any, free: Any, dealt: Any, monomials: Any, consts: Any, digits: Any) -> None:
    """Party 0's stream in ``dealt`` becomes party 1's corrections for the masks r (mod 2^k) and the
    opened mask bits ``free`` (both parties' together)."""
    con = constants(consts)
    ring, count, above = con.ring, con.products, con.above
    size = (1 + count) * ring + above
    keep, last = ONES >> np.uint64(64 - ring), ONES >> np.uint64(64 - max(above, 1))
    own = ONES >> np.uint64(64 - con.variables)
    olds = np.empty(count + 2, np.uint64)
    for i in range(r.shape[0]):
        low = 0
        for j in range(digits.shape[0]):
            width = 1 << digits[j, 0]
            digit = np.int64(r[i] >> np.uint64(low)) & (width - 1)
            if j == 0:
                prefix(dealt, digits[0, 1] + i * width, digits[0, 0], digit)
            else:
                flip_one(dealt, digits[j, 1] + i * width + digit)
            low += digits[j, 0]
        place = i * size
        # All are read before any is written: what was just written is slow to read again.
        for j in range(count + 1):
            olds[j] = read(dealt, place + j * ring, ring)
        if above > 0:
            olds[count + 1] = read(dealt, place + (count + 1) * ring, above)
        n = monomials[free[i] & own]
        value = (r[i] >> np.uint64(con.shift)) & keep
        for j in range(count + 1):
            flip(dealt, place, ring, olds[j] ^ ((value - olds[j]) & keep))
            value = (n >> np.uint64(j)) & ONE
            place += ring
        if above > 0:
            value = r[i] >> np.uint64(con.input_ring - 1)
            flip(dealt, place, above, olds[count + 1] ^ ((value - olds[count + 1]) & last))
