"""Compiled loops of Requantize: what each party looks up, selects and lifts, and what is dealt. The
input is lifted by the same.

``consts`` are a gate's Constants and ``firsts`` its Places, as int64 vectors; ``digits`` has the
bits and the place of each digit of the borrow; ``free`` has one word of an element's own mask bits,
in the order in which bits are opened.
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
    correct,
    flip,
    kernel,
    lookup,
    prefix,
    read,
    variables,
)

__all__ = [
    "Constants", "Places", "deal_lift", "deal_v3", "deal_v4", "lift", "lift_v3", "open_v3",
    "open_v4", "select_v4",
]  # fmt: skip


class Constants(NamedTuple):
    """Of one Requantize, as ``protocol.tables`` defines them.

    shift: s. width: W. granule: q. reach: H. bits: of a looked-up number. below, above: the number
    below the table, and above it XOR ``below``. variables, products: of the borrow. record: bits of
    an element's record of products. opened: bits of its first round. floor: what numbers count
    from. ring: bits of the output. lift: bits of an element's lift.
    """

    shift: int
    width: int
    granule: int
    reach: int
    bits: int
    below: int
    above: int
    variables: int
    products: int
    record: int
    opened: int
    floor: int
    ring: int
    lift: int


class Places(NamedTuple):
    """First bit of every dealt field; of the digits, of the lowest."""

    main: int
    saturation: int
    records: int
    lifts: int
    digits: int


@kernel(types.NamedUniTuple(I, len(Constants._fields), Constants)(INT))
def constants(v: Any) -> Constants:
    """The fields by name, of int64[fields]: a tuple as an argument would cost 6 µs a call."""
    return Constants(
        v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13]
    )


@kernel(types.NamedUniTuple(I, len(Places._fields), Places)(INT))
def places(v: Any) -> Places:
    """As ``constants``."""
    return Places(v[0], v[1], v[2], v[3], v[4])


@kernel(types.void(IN, IN, IN, INT, INT, INT2, IN3, IN3, OUT, OUT))
def open_v4(
    c: Any, dealt: Any, free: Any, consts: Any, firsts: Any, digits: Any, planes: Any,
    windows: Any, high: Any, out: Any,
) -> None:  # fmt: skip
    """Own share of every looked-up bit, masked; ``high`` keeps the share of [u above the table]."""
    con, at = constants(consts), places(firsts)
    shift, width, reach = con.shift, con.width, con.reach
    keep, around = (1 << width) - 1, (1 << reach) - 1
    numbers = 2 * con.bits if shift > 0 else con.bits
    for i in range(c.shape[0]):
        turn = np.int64(c[i] >> np.uint64(shift)) & keep
        word = lookup(dealt, at.main + (i << width), width, turn, planes)
        fill = numbers
        if reach > 0:
            top = np.int64(c[i] >> np.uint64(shift + con.granule)) & around
            got = lookup(dealt, at.saturation + (i << reach), reach, top, windows)
            word |= (got & ONE) << np.uint64(fill)
            high[i] = got >> ONE
            fill += 1
        if digits.shape[0] > 0:
            word |= variables(dealt, digits, c[i], i) << np.uint64(fill)
            fill += 2 * digits.shape[0] - 1
        out[i] = word ^ (free[i] & (ONES >> np.uint64(64 - fill)))


@kernel(types.void(IN, IN, IN, IN, IN, I, INT, INT, OUT))
def select_v4(
    opened: Any, dealt: Any, free: Any, high: Any, kappa: Any, party: int, consts: Any,
    firsts: Any, out: Any,
) -> None:  # fmt: skip
    """Own share of the looked-up number, masked by the next bits of ``free``."""
    con, at = constants(consts), places(firsts)
    bits, reach, variables, count = con.bits, con.reach, con.variables, con.products
    keep = ONES >> np.uint64(64 - bits)
    shift = np.uint64(bits)
    first = bits if variables == 0 else 2 * bits
    digits_at = first + (1 if reach > 0 else 0)
    one = ONE if party == 0 else ZERO
    full = keep * one
    for i in range(opened.shape[0]):
        op, own, place = opened[i], free[i], at.records + i * con.record
        tau, mu = op & keep, own & keep
        inner, gated = (tau & full) ^ mu, ZERO
        inside = ZERO
        if reach > 0:
            inside = (own >> np.uint64(first)) & ONE
            gated = (tau * inside) ^ read(dealt, place, bits)
            place += bits
        if variables > 0:
            delta, change = (own >> shift) & keep, (op >> shift) & keep
            kap = kappa[(op >> np.uint64(digits_at)) & ((ONE << np.uint64(variables)) - ONE)]
            borrow, borrow_in = (kap & ONE) * one, ZERO
            by, by_in = ZERO, ZERO
            if kap & ONE:
                by = delta
            if reach > 0:
                if kap & ONE:
                    borrow_in = inside
                    by_in = read(dealt, place, bits)
                place += bits
            for j in range(count):
                size = bits + (bits + 1 if reach > 0 else 0) + (1 if j >= variables else 0)
                if (kap >> np.uint64(j + 1)) & ONE:
                    part = read(dealt, place, size)
                    by ^= part & keep
                    rest = part >> shift
                    if reach > 0:
                        by_in ^= rest & keep
                        rest >>= shift
                        borrow_in ^= rest & ONE
                        rest >>= ONE
                    if j >= variables:
                        borrow ^= rest & ONE
                    else:
                        borrow ^= (own >> np.uint64(digits_at + j)) & ONE
                place += size
            inner ^= (change * borrow) ^ by
            gated ^= (change * borrow_in) ^ by_in
        if reach > 0:
            gated ^= inner * ((op >> np.uint64(first)) & ONE)
            number = gated ^ (np.uint64(con.above) * high[i]) ^ (np.uint64(con.below) & full)
        else:
            number = inner
        out[i] = number ^ ((own >> np.uint64(con.opened)) & keep)


@kernel(types.void(IN, IN, IN, I, I, I, I, I, OUT))
def lift(
    opened: Any, dealt: Any, masks: Any, party: int, bits: int, ring: int, floor: int, place: int,
    out: Any,
) -> None:  # fmt: skip
    """Own share of floor + Σ 2^j (p_j ^ m_j) + mask in the output's ring. place: of the field."""
    keep = ONES >> np.uint64(64 - ring)
    for i in range(opened.shape[0]):
        made = masks[i]
        if party == 0:
            made += opened[i] + np.uint64(floor)
        for j in range(min(bits, ring)):
            minus = ZERO - ((opened[i] >> np.uint64(j)) & ONE)  # no branch on a random bit
            made += ((read(dealt, place, ring - j) ^ minus) - minus) << np.uint64(j)
            place += ring - j
        out[i] = made & keep


@kernel(I(OUT, I, I, I, U))
def correct_bits(dealt: Any, place: int, bits: int, ring: int, number: Any) -> Any:
    """What ``lift`` reads of one number's bits; the place behind it."""
    for j in range(min(bits, ring)):
        correct(dealt, place, ring - j, (number >> np.uint64(j)) & ONE)
        place += ring - j
    return place


@kernel(types.void(IN, OUT, I, I, I))
def deal_lift(numbers: Any, dealt: Any, bits: int, ring: int, place: int) -> None:
    """Party 0's stream in ``dealt`` becomes party 1's corrections for the masks of opened bits."""
    for i in range(numbers.shape[0]):
        place = correct_bits(dealt, place, bits, ring, numbers[i])


@kernel(types.void(IN, IN, OUT, IN, INT, INT, INT2))
def deal_v4(
    r: Any, free: Any, dealt: Any, monomials: Any, consts: Any, firsts: Any, digits: Any
) -> None:
    """Party 0's stream in ``dealt`` becomes party 1's corrections for the masks r (mod 2^k) and the
    opened mask bits ``free`` (both parties' together)."""
    con, at = constants(consts), places(firsts)
    bits, reach, variables, count = con.bits, con.reach, con.variables, con.products
    shift, width, ring = con.shift, con.width, con.ring
    keep = ONES >> np.uint64(64 - bits)
    first = bits if variables == 0 else 2 * bits
    digits_at = first + (1 if reach > 0 else 0)
    for i in range(r.shape[0]):
        turn = np.int64((r[i] >> np.uint64(shift)) & ((ONE << np.uint64(width)) - ONE))
        flip(dealt, at.main + (i << width) + turn, 1, ONE)
        own, place = free[i], at.records + i * con.record
        if reach > 0:
            top = np.int64(r[i] >> np.uint64(shift + con.granule)) & ((1 << reach) - 1)
            flip(dealt, at.saturation + (i << reach) + top, 1, ONE)
        low = 0
        for j in range(digits.shape[0]):
            size = 1 << digits[j, 0]
            digit = np.int64(r[i] >> np.uint64(low)) & (size - 1)
            if j == 0:
                prefix(dealt, digits[0, 1] + i * size, digits[0, 0], digit)
            else:
                flip(dealt, digits[j, 1] + i * size + digit, 1, ONE)
            low += digits[j, 0]
        inside = (own >> np.uint64(first)) & ONE if reach > 0 else ZERO
        delta = (own >> np.uint64(bits)) & keep if variables > 0 else ZERO
        if reach > 0:
            flip(dealt, place, bits, (own & keep) * inside)
            place += bits
            if variables > 0:
                flip(dealt, place, bits, delta * inside)
                place += bits
        if variables > 0:
            made = monomials[(own >> np.uint64(digits_at)) & ((ONE << np.uint64(variables)) - ONE)]
            for j in range(count):
                n = (made >> np.uint64(j)) & ONE
                part, size = delta * n, bits
                if reach > 0:
                    part |= (delta * n * inside) << np.uint64(size)
                    part |= (n * inside) << np.uint64(size + bits)
                    size += bits + 1
                if j >= variables:
                    part |= n << np.uint64(size)
                    size += 1
                flip(dealt, place, size, part)
                place += size
        place = at.lifts + i * con.lift
        number = (own >> np.uint64(con.opened)) & keep
        correct_bits(dealt, place, bits, ring, number)


@kernel(types.void(IN, IN, IN, INT, INT, IN3, IN3, OUT))
def open_v3(
    c: Any, dealt: Any, free: Any, consts: Any, firsts: Any, planes: Any, windows: Any, out: Any
) -> None:
    """As ``open_v4``: a number for either case of the opened borrow bit, inside, above, borrow."""
    con, at = constants(consts), places(firsts)
    shift, width, reach, bits = con.shift, con.width, con.reach, con.bits
    cases = 2 if shift > 0 else 1
    keep, around = (1 << width) - 1, (1 << reach) - 1
    for i in range(c.shape[0]):
        turn = np.int64(c[i] >> np.uint64(shift)) & keep
        word, fill = ZERO, 0
        for case in range(cases):
            base = at.main + ((i * cases + case) << width)
            word |= lookup(dealt, base, width, turn, planes) << np.uint64(fill)
            fill += bits
        if reach > 0:
            top = np.int64(c[i] >> np.uint64(shift + con.granule)) & around
            got = lookup(dealt, at.saturation + (i << reach), reach, top, windows)
            word |= got << np.uint64(fill)
            fill += 2
        if shift > 0:
            digit = np.int64(c[i] & ((ONE << np.uint64(shift)) - ONE))
            word |= read(dealt, at.digits + (i << shift) + digit, 1) << np.uint64(fill)
            fill += 1
        out[i] = word ^ (free[i] & (ONES >> np.uint64(64 - fill)))


@kernel(types.void(IN, IN, IN, I, INT, INT, OUT))
def lift_v3(
    opened: Any, dealt: Any, masks: Any, party: int, consts: Any, firsts: Any, out: Any
) -> None:
    """Own share of the number in the output's ring, masked: the case that the opened borrow bit
    selects, times [inside], plus [above] times its constant, in products that were dealt."""
    con, at = constants(consts), places(firsts)
    bits, ring, reach = con.bits, con.ring, con.reach
    cases = 2 if con.shift > 0 else 1
    keep, number = ONES >> np.uint64(64 - ring), ONES >> np.uint64(64 - bits)
    one = ONE if party == 0 else ZERO
    below = np.uint64(con.below)
    step = (np.uint64(con.above) ^ below) - below
    size = 2 if reach > 0 else 1
    lifted = 0  # bits of one case
    for j in range(min(bits, ring)):
        lifted += size * (ring - j)
    for i in range(opened.shape[0]):
        place, op = at.lifts + i * con.lift, opened[i]
        made = masks[i] + one * (np.uint64(con.floor) + below)
        gates = op >> np.uint64(cases * bits)
        inside, share_in = ONE, ZERO
        if reach > 0:
            inside, above = gates & ONE, (gates >> ONE) & ONE
            gates >>= np.uint64(2)
            share_in = read(dealt, place, ring)
            share = read(dealt, place + ring, ring)
            made += step * (above * one + ((ZERO - share) if above else share))
            if inside:
                share_in = ZERO - share_in
            place += 2 * ring
        case: Any = np.int64(gates & ONE) if cases == 2 else 0
        tau = (op >> np.uint64(case * bits)) & number
        place += case * lifted
        for j in range(min(bits, ring)):
            bit = (tau >> np.uint64(j)) & ONE
            term = inside * bit * one + bit * share_in
            mu = read(dealt, place, ring - j)
            by = inside * mu
            if reach > 0:
                both = read(dealt, place + ring - j, ring - j)
                by += (both ^ (ZERO - inside)) + inside
            term += (by ^ (ZERO - bit)) + bit
            if (below >> np.uint64(j)) & ONE:
                term = ZERO - term
            made += term << np.uint64(j)
            place += size * (ring - j)
        out[i] = made & keep


@kernel(types.void(IN, IN, OUT, INT, INT))
def deal_v3(r: Any, free: Any, dealt: Any, consts: Any, firsts: Any) -> None:
    """As ``deal_v4``. The opened borrow bit p = b ^ n selects a case: p = 0 the one-hot of
    r1 + n, p = 1 that of r1 + 1 - n, so that either is of r1 + b."""
    con, at = constants(consts), places(firsts)
    bits, reach, shift, width = con.bits, con.reach, con.shift, con.width
    ring = con.ring
    cases = 2 if shift > 0 else 1
    keep, number = (1 << width) - 1, ONES >> np.uint64(64 - bits)
    for i in range(r.shape[0]):
        own = free[i]
        gates = own >> np.uint64(cases * bits)
        place = at.lifts + i * con.lift
        inside = ZERO
        if reach > 0:
            inside = gates & ONE
            correct(dealt, place, ring, inside)
            correct(dealt, place + ring, ring, (gates >> ONE) & ONE)
            place += 2 * ring
            gates >>= np.uint64(2)
            top = np.int64(r[i] >> np.uint64(shift + con.granule)) & ((1 << reach) - 1)
            flip(dealt, at.saturation + (i << reach) + top, 1, ONE)
        borrow = np.int64(gates & ONE) if cases == 2 else 0
        turn = np.int64(r[i] >> np.uint64(shift)) + borrow
        for case in range(cases):
            hot = (turn if case == 0 else turn + 1 - 2 * borrow) & keep
            flip(dealt, at.main + ((i * cases + case) << width) + hot, 1, ONE)
            mu = (own >> np.uint64(case * bits)) & number
            for j in range(min(bits, ring)):
                bit = (mu >> np.uint64(j)) & ONE
                correct(dealt, place, ring - j, bit)
                place += ring - j
                if reach > 0:
                    correct(dealt, place, ring - j, bit * inside)
                    place += ring - j
        if shift > 0:
            low = np.int64(r[i] & ((ONE << np.uint64(shift)) - ONE))
            prefix(dealt, at.digits + (i << shift), shift, low)
