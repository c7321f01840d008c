"""Compiled loops of a Requantize in two rounds whose borrow is made of digits: both cases of the
number are opened with what chooses between them, and the result is a sum of dealt products.

``consts``, ``firsts``, ``digits`` and ``free`` are as in ``lookups``. Opened together are the
number for b = 0, that for b = 1, [inside] and [above] (where there are range bits), and b's
variables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from secure_quant.mpc.kernels.bits import (
    IN,
    IN2,
    IN3,
    INT,
    INT2,
    ONE,
    ONES,
    OUT,
    ZERO,
    I,
    correct,
    flip_one,
    kernel,
    lookup,
    prefix,
    read,
    variables,
)
from secure_quant.mpc.kernels.lookups import constants, places

__all__ = ["deal_scaled", "deal_v5", "lift_v5", "open_v5"]


@kernel(types.void(IN, IN, IN, INT, INT, INT2, IN3, IN3, OUT))
def open_v5(
    c: Any, dealt: Any, free: Any, consts: Any, firsts: Any, digits: Any, planes: Any,
    windows: Any, out: Any,
) -> None:  # fmt: skip
    """Own share of every looked-up bit, masked."""
    con, at = constants(consts), places(firsts)
    width, reach = con.width, con.reach
    keep, around = (1 << width) - 1, (1 << reach) - 1
    for i in range(c.shape[0]):
        turn = np.int64(c[i] >> np.uint64(con.shift)) & keep
        word = lookup(dealt, at.main + (i << width), width, turn, planes)
        fill = 2 * con.bits
        if reach > 0:
            top = np.int64(c[i] >> np.uint64(con.shift + con.granule)) & around
            got = lookup(dealt, at.saturation + (i << reach), reach, top, windows)
            word |= got << np.uint64(fill)
            fill += 2
        word |= variables(dealt, digits, c[i], i) << np.uint64(fill)
        out[i] = word ^ (free[i] & (ONES >> np.uint64(64 - con.opened)))


@kernel(types.void(IN, IN, IN, IN2, I, INT, INT, OUT))
def lift_v5(
    opened: Any, dealt: Any, masks: Any, kappa: Any, party: int, consts: Any, firsts: Any, out: Any
) -> None:
    """Own share of the number in the output's ring, masked. kappa: by the opened variables, the
    factors of 1 and of every product of masks in b, as integers."""
    con, at = constants(consts), places(firsts)
    bits, ring, reach = con.bits, con.ring, con.reach
    keep, one = ONES >> np.uint64(64 - ring), ONE if party == 0 else ZERO
    below, gates = np.uint64(con.below), 2 if reach > 0 else 1
    step = (np.uint64(con.above) ^ below) - below
    first = 2 * bits + (2 if reach > 0 else 0)
    chosen = (ONE << np.uint64(con.variables)) - ONE
    for i in range(opened.shape[0]):
        place, op = at.lifts + i * con.lift, opened[i]
        made = masks[i] + one * (np.uint64(con.floor) + below)
        inside = ONE
        if reach > 0:
            inside, above = (op >> np.uint64(2 * bits)) & ONE, (op >> np.uint64(2 * bits + 1)) & ONE
            share = read(dealt, place, ring)
            made += step * (above * one + (ONE - (above << ONE)) * share)
            place += ring
        row = np.int64((op >> np.uint64(first)) & chosen)
        for gate in range(gates):
            # [inside] is p + (1 - 2p)·n: first what stands with p, then what stands with n.
            gated = inside if gate == 0 else ONE - (inside << ONE)
            for sub in range(con.products + 1):
                n = one
                if gate > 0 or sub > 0:
                    n = read(dealt, place, ring)
                    place += ring
                factor = kappa[row, sub]
                for case in range(2):
                    by = factor
                    if case == 0:
                        by = (ONE if sub == 0 else ZERO) - factor
                    by *= gated
                    for j in range(min(bits, ring)):
                        bit = (op >> np.uint64(case * bits + j)) & ONE
                        mu = read(dealt, place, ring - j)
                        place += ring - j
                        term = bit * n + ((mu ^ (ZERO - bit)) + bit)
                        if (below >> np.uint64(j)) & ONE:
                            term = ZERO - term
                        made += by * (term << np.uint64(j))
        out[i] = made & keep


@kernel(types.void(IN, IN, OUT, IN, INT, INT, INT2))
def deal_v5(
    r: Any, free: Any, dealt: Any, monomials: Any, consts: Any, firsts: Any, digits: Any
) -> None:
    """Party 0's stream in ``dealt`` becomes party 1's corrections for the masks r (mod 2^k) and the
    opened mask bits ``free`` (both parties' together)."""
    con, at = constants(consts), places(firsts)
    bits, ring, reach, width = con.bits, con.ring, con.reach, con.width
    gates = 2 if reach > 0 else 1
    chosen = (ONE << np.uint64(con.variables)) - ONE
    for i in range(r.shape[0]):
        turn = np.int64(r[i] >> np.uint64(con.shift)) & ((1 << width) - 1)
        flip_one(dealt, at.main + (i << width) + turn)
        low = 0
        for j in range(digits.shape[0]):
            size = 1 << digits[j, 0]
            digit = np.int64(r[i] >> np.uint64(low)) & (size - 1)
            if j == 0:
                prefix(dealt, digits[0, 1] + i * size, digits[0, 0], digit)
            else:
                flip_one(dealt, digits[j, 1] + i * size + digit)
            low += digits[j, 0]
        own, place, inside = free[i], at.lifts + i * con.lift, ONE
        above = own >> np.uint64(2 * bits)
        if reach > 0:
            top = np.int64(r[i] >> np.uint64(con.shift + con.granule)) & ((1 << reach) - 1)
            flip_one(dealt, at.saturation + (i << reach) + top)
            inside = above & ONE
            correct(dealt, place, ring, (above >> ONE) & ONE)
            place += ring
            above >>= np.uint64(2)
        products = monomials[above & chosen] << ONE | ONE
        for gate in range(gates):
            for sub in range(con.products + 1):
                n = (products >> np.uint64(sub)) & ONE
                if gate > 0:
                    n &= inside
                if gate > 0 or sub > 0:
                    correct(dealt, place, ring, n)
                    place += ring
                for case in range(2):
                    for j in range(min(bits, ring)):
                        bit = (own >> np.uint64(case * bits + j)) & ONE
                        correct(dealt, place, ring - j, n & bit)
                        place += ring - j


@kernel(types.void(IN, IN, OUT, I, I, I))
def deal_scaled(numbers: Any, factors: Any, dealt: Any, bits: int, ring: int, place: int) -> None:
    """As ``lookups.deal_lift``, of each number's bits times its factor."""
    for i in range(numbers.shape[0]):
        for j in range(min(bits, ring)):
            factor = factors[i] & (ONES >> np.uint64(64 - ring + j))
            correct(dealt, place, ring - j, ((numbers[i] >> np.uint64(j)) & ONE) * factor)
            place += ring - j
