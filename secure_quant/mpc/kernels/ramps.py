"""Compiled loops of a Requantize by a ramp: what each party looks up, selects, lifts, and what is
dealt.

``consts`` are a gate's RampConstants and ``firsts`` its RampPlaces, as int64 vectors; ``digits``
has the bits and the place of each digit; ``free`` has one word of an element's own mask bits, in
the order in which bits are opened: the variables of the borrow, [g = 0], [g = 1], [g > 0]; then b,
[inside], [inside and b'].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from secure_quant.mpc.kernels.bits import (
    IN,
    IN3,
    INT,
    INT2,
    ONE,
    ONES,
    OUT,
    ZERO,
    I,
    U,
    flip,
    flip_one,
    kernel,
    lookup,
    prefix,
    read,
    variables,
)
from secure_quant.mpc.kernels.simd import popcount

__all__ = ["RampConstants", "RampPlaces", "deal_ramp", "lift_ramp", "open_ramp", "select_ramp"]


class RampConstants(NamedTuple):
    """Of one ramp, as ``protocol.ramps`` defines them.

    shift: s. steps: q. reach: H. variables, products: of the borrow. record: bits of an element's
    record of products. floor: least number. step: from one to the next. ring: bits of the output.
    """

    shift: int
    steps: int
    reach: int
    variables: int
    products: int
    record: int
    floor: int
    step: int
    ring: int


class RampPlaces(NamedTuple):
    """First bit of every dealt field but the digits'."""

    saturation: int
    records: int
    lifts: int


@kernel(types.NamedUniTuple(I, len(RampConstants._fields), RampConstants)(INT))
def constants(v: Any) -> RampConstants:
    """The fields by name, of int64[fields]."""
    return RampConstants(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8])


@kernel(types.NamedUniTuple(I, len(RampPlaces._fields), RampPlaces)(INT))
def places(v: Any) -> RampPlaces:
    """As ``constants``."""
    return RampPlaces(v[0], v[1], v[2])


@kernel(U(U))
def odd(x: Any) -> Any:
    """Parity of a word."""
    return popcount(x) & ONE


@kernel(types.void(IN, IN, IN, INT, INT, INT2, IN3, OUT))
def open_ramp(
    c: Any, dealt: Any, free: Any, consts: Any, firsts: Any, digits: Any, windows: Any, out: Any
) -> None:
    """Own share of the borrow's variables and of [g = 0], [g = 1], [g > 0], masked."""
    con, at = constants(consts), places(firsts)
    reach, around = con.reach, (1 << con.reach) - 1
    keep = ONES >> np.uint64(61 - con.variables)
    for i in range(c.shape[0]):
        top = np.int64(c[i] >> np.uint64(con.shift + con.steps)) & around
        word = lookup(dealt, at.saturation + (i << reach), reach, top, windows)
        word <<= np.uint64(con.variables)
        word |= variables(dealt, digits, c[i], i)
        out[i] = word ^ (free[i] & keep)


@kernel(types.void(IN, IN, IN, IN, IN, I, INT, INT, OUT))
def select_ramp(
    opened: Any, dealt: Any, free: Any, lower: Any, whole: Any, party: int, consts: Any,
    firsts: Any, out: Any,
) -> None:  # fmt: skip
    """Own share of b, [inside], [inside and b'], masked. lower, whole: which products of masks make
    b and b', by the opened variables."""
    con, at = constants(consts), places(firsts)
    variables, count = con.variables, con.products
    rest = count - variables
    keep = ONES >> np.uint64(64 - variables)
    one = ONE if party == 0 else ZERO
    for i in range(opened.shape[0]):
        op, own, place = opened[i], free[i], at.records + i * con.record
        n = own & keep
        if rest > 0:
            n |= read(dealt, place, rest) << np.uint64(variables)
        with_zero = read(dealt, place + rest, count)
        with_one = read(dealt, place + rest + count, count)
        p_zero, p_one = (op >> np.uint64(variables)) & ONE, (op >> np.uint64(variables + 1)) & ONE
        n_zero, n_one = (own >> np.uint64(variables)) & ONE, (own >> np.uint64(variables + 1)) & ONE
        low, high = lower[op & keep], whole[op & keep]
        b = odd(n & (low >> ONE)) ^ (low & one)
        many, always = high >> ONE, high & ONE
        borrow = odd(n & many) ^ (always & one)
        zero = (p_zero & borrow) ^ odd(with_zero & many) ^ (always & n_zero)
        both = (p_one & borrow) ^ odd(with_one & many) ^ (always & n_one)
        inside = (p_zero & one) ^ n_zero ^ zero ^ both
        made = b | inside << ONE | both << np.uint64(2)
        out[i] = made ^ ((own >> np.uint64(variables + 3)) & np.uint64(7))


@kernel(types.void(IN, IN, IN, IN, IN, I, INT, INT, OUT))
def lift_ramp(
    c: Any, first: Any, opened: Any, dealt: Any, masks: Any, party: int, consts: Any, firsts: Any,
    out: Any,
) -> None:  # fmt: skip
    """Own share of floor + step·(inside·(c' - r' - b) + [inside and b'] + (2^q - 1)·[g > 0]) + mask
    in the output's ring. first, opened: what the two rounds before opened."""
    con, at = constants(consts), places(firsts)
    ring = con.ring
    keep, full = ONES >> np.uint64(64 - ring), ONES >> np.uint64(64 - con.steps)
    one = ONE if party == 0 else ZERO
    for i in range(opened.shape[0]):
        place, op = at.lifts + i * 7 * ring, opened[i]
        r = read(dealt, place, ring)
        n = read(dealt, place + ring, ring)
        n_r = read(dealt, place + 2 * ring, ring)
        m = read(dealt, place + 3 * ring, ring)
        n_m = read(dealt, place + 4 * ring, ring)
        n_both = read(dealt, place + 5 * ring, ring)
        n_over = read(dealt, place + 6 * ring, ring)
        digit = (c[i] >> np.uint64(con.shift)) & full
        b, inside, both = op & ONE, (op >> ONE) & ONE, (op >> np.uint64(2)) & ONE
        over = (first[i] >> np.uint64(con.variables + 2)) & ONE
        # A bit is p + (1 - 2p)·n for its opened p and its mask n. c' - r' - b and its product with
        # the mask of [inside]:
        free_b = ONE - (b << ONE)
        number = one * (digit - b) - r - free_b * m
        masked = (digit - b) * n - n_r - free_b * n_m
        made = one * (both + over * full)
        made += inside * number + (ONE - (inside << ONE)) * masked
        made += (ONE - (both << ONE)) * n_both + full * ((ONE - (over << ONE)) * n_over)
        out[i] = (masks[i] + one * np.uint64(con.floor) + np.uint64(con.step) * made) & keep


@kernel(types.void(IN, IN, OUT, IN, INT, INT, INT2))
def deal_ramp(
    r: Any, free: Any, dealt: Any, monomials: Any, consts: Any, firsts: Any, digits: Any
) -> None:
    """Party 0's stream in ``dealt`` becomes party 1's corrections for the masks r (mod 2^k) and the
    opened mask bits ``free`` (both parties' together)."""
    con, at = constants(consts), places(firsts)
    variables, count, reach, ring = con.variables, con.products, con.reach, con.ring
    rest = count - variables
    full, keep = ONES >> np.uint64(64 - con.steps), ONES >> np.uint64(64 - ring)
    for i in range(r.shape[0]):
        top = np.int64(r[i] >> np.uint64(con.shift + con.steps)) & ((1 << reach) - 1)
        flip_one(dealt, at.saturation + (i << reach) + top)
        low = 0
        for j in range(digits.shape[0]):
            size = 1 << digits[j, 0]
            digit = np.int64(r[i] >> np.uint64(low)) & (size - 1)
            if j == 0:
                prefix(dealt, digits[0, 1] + i * size, digits[0, 0], digit)
            else:
                flip_one(dealt, digits[j, 1] + i * size + digit)
            low += digits[j, 0]
        own, place = free[i], at.records + i * con.record
        n = monomials[own & (ONES >> np.uint64(64 - variables))]
        if rest > 0:
            flip(dealt, place, rest, n >> np.uint64(variables))
        own >>= np.uint64(variables)
        flip(dealt, place + rest, count, n * (own & ONE))
        flip(dealt, place + rest + count, count, n * ((own >> ONE) & ONE))
        place = at.lifts + i * 7 * ring
        digit_r = (r[i] >> np.uint64(con.shift)) & full
        m, inside = (own >> np.uint64(3)) & ONE, (own >> np.uint64(4)) & ONE
        # All are read before any is written: what was just written is slow to read again.
        olds = (
            read(dealt, place, ring), read(dealt, place + ring, ring),
            read(dealt, place + 2 * ring, ring), read(dealt, place + 3 * ring, ring),
            read(dealt, place + 4 * ring, ring), read(dealt, place + 5 * ring, ring),
            read(dealt, place + 6 * ring, ring),
        )  # fmt: skip
        values = (
            digit_r, inside, inside * digit_r, m, inside * m, (own >> np.uint64(5)) & ONE,
            (own >> np.uint64(2)) & ONE,
        )  # fmt: skip
        for j in range(7):
            flip(dealt, place + j * ring, ring, olds[j] ^ ((values[j] - olds[j]) & keep))
