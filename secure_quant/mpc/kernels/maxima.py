"""Compiled loops of the maximum of 2, 3 or 4: compare, select, deal.

Candidates y_0 .. y_(a-1) are masked mod 2^k. For a pair i < j the difference D = D_i - D_j mod 2^w
(w: bits of a signed difference) gives s_ij = [y_i >= y_j] = 1 ^ top(D) ^ top(r) ^ [low(D) < low(r)]
with r = r_i - r_j; the dealer's table holds the last bit for every low(D), and the opened bit is
masked by n_ij. With P = opened ^ top(D) ^ 1 and m_ij = n_ij ^ top(r), s_ij = P ^ m_ij.

Candidate i wins if it beats all others, a tie being the earlier one's; so with the last as a base
y = y_last + Σ_i w_i·(y_i - y_last), w_i = Π_j s_ij, in products of masks that the dealer shares:
first every m_ij, then per i < last its subsets U of two and more m, then every U times
r_i - r_last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from secure_quant.mpc.kernels.bits import (
    IN,
    INT,
    ONE,
    ONES,
    OUT,
    ZERO,
    I,
    compared,
    correct,
    flip,
    kernel,
    prefix,
    read,
)
from secure_quant.mpc.kernels.simd import popcount

__all__ = [
    "DEAL", "SELECT", "compare", "compare_digits", "deal_digits", "deal_tables", "join_digits",
]  # fmt: skip


@kernel(types.int64(I, I, I))
def pair_at(i: int, j: int, arity: int) -> int:
    """Place of the pair i < j."""
    made: int = i * arity - (i * (i + 1)) // 2 + j - i - 1
    return made


@kernel(types.void(IN, IN, IN, I, I, I, OUT))
def compare(
    values: Any, dealt: Any, free: Any, arity: int, width: int, place: int, out: Any
) -> None:
    """Own masked share of every comparison bit. values: [n · arity]; place: of the tables."""
    count, half = arity * (arity - 1) // 2, 1 << (width - 1)
    keep = np.uint64(half - 1)
    for e in range(out.shape[0]):
        word, t = ZERO, 0
        for i in range(arity - 1):
            for j in range(i + 1, arity):
                low = np.int64((values[e * arity + i] - values[e * arity + j]) & keep)
                word |= read(dealt, place + (e * count + t) * half + low, 1) << np.uint64(t)
                t += 1
        out[e] = word ^ (free[e] & (ONES >> np.uint64(64 - count)))


@kernel(types.void(IN, OUT, I, I, I))
def deal_tables(r: Any, dealt: Any, arity: int, width: int, place: int) -> None:
    """Party 0's stream in ``dealt`` becomes party 1's corrections, of what ``compare`` reads. r:
    [n · arity] masks."""
    half = 1 << (width - 1)
    for e in range(r.shape[0] // arity):
        for i in range(arity - 1):
            for j in range(i + 1, arity):
                low = np.int64((r[e * arity + i] - r[e * arity + j]) & np.uint64(half - 1))
                prefix(dealt, place, width - 1, low)
                place += half


# ----------------------------------------------------- comparisons by digits, in a round more


@kernel(types.void(IN, IN, IN, I, INT, I, OUT))
def compare_digits(
    values: Any, dealt: Any, free: Any, arity: int, digits: Any, place: int, out: Any
) -> None:
    """Own masked share of every comparison's variables. values: [n · arity]. digits: bits of each,
    6 at most, and last the bits of a comparison's record of products; place: of the tables, each
    comparison's before its record."""
    count, last = arity * (arity - 1) // 2, digits.shape[0] - 1
    keep = ONES >> np.uint64(64 - count * (2 * last - 1))
    for e in range(out.shape[0]):
        word, fill = ZERO, 0
        for i in range(arity - 1):
            for j in range(i + 1, arity):
                c, low = values[e * arity + i] - values[e * arity + j], 0
                for t in range(last):
                    bits = digits[t]
                    digit = np.int64(c >> np.uint64(low)) & ((1 << bits) - 1)
                    if t == 0:
                        word |= read(dealt, place + digit, 1) << np.uint64(fill)
                        fill += 1
                    else:
                        word |= compared(dealt, place, bits, digit) << np.uint64(fill)
                        fill += 2
                    low += bits
                    place += 1 << bits
                place += digits[last]
        out[e] = word ^ (free[e] & keep)


@kernel(types.void(IN, IN, IN, I, INT, IN, I, I, OUT))
def join_digits(
    opened: Any, dealt: Any, free: Any, arity: int, digits: Any, kappa: Any, place: int,
    party: int, out: Any,
) -> None:  # fmt: skip
    """Own share of every comparison's borrow, under the next bits of ``free``. kappa: which
    products of masks make it, by the opened variables."""
    count, last = arity * (arity - 1) // 2, digits.shape[0] - 1
    variables, record = 2 * last - 1, digits[last]
    keep, one = ONES >> np.uint64(64 - variables), ONE if party == 0 else ZERO
    size = 0
    for t in range(last):
        size += 1 << digits[t]
    for e in range(out.shape[0]):
        word = ZERO
        for pair in range(count):
            place += size
            by = np.uint64(pair * variables)
            n = (free[e] >> by) & keep
            if record > 0:
                n |= read(dealt, place, record) << np.uint64(variables)
            kap = kappa[(opened[e] >> by) & keep]
            word |= ((popcount(n & (kap >> ONE)) ^ (kap & one)) & ONE) << np.uint64(pair)
            place += record
        masks = free[e] >> np.uint64(count * variables)
        out[e] = word ^ (masks & (ONES >> np.uint64(64 - count)))


@kernel(types.void(IN, IN, OUT, IN, I, INT, I))
def deal_digits(
    r: Any, free: Any, dealt: Any, monomials: Any, arity: int, digits: Any, place: int
) -> None:
    """As ``deal_tables``, of what ``compare_digits`` and ``join_digits`` read."""
    last = digits.shape[0] - 1
    variables = 2 * last - 1
    for e in range(free.shape[0]):
        own = free[e]
        for i in range(arity - 1):
            for j in range(i + 1, arity):
                difference, low = r[e * arity + i] - r[e * arity + j], 0
                for t in range(last):
                    bits = digits[t]
                    digit = np.int64(difference >> np.uint64(low)) & ((1 << bits) - 1)
                    if t == 0:
                        prefix(dealt, place, bits, digit)
                    else:
                        flip(dealt, place + digit, 1, ONE)
                    low += bits
                    place += 1 << bits
                n = monomials[own & (ONES >> np.uint64(64 - variables))]
                if digits[last] > 0:
                    flip(dealt, place, digits[last], n >> np.uint64(variables))
                place += digits[last]
                own >>= np.uint64(variables)


# --------------------------------------------------------------------------------- selections


def selector(arity: int) -> Callable[..., None]:
    """``SELECT`` of so many candidates; that the number is a constant unrolls the loops."""

    @kernel(types.void(IN, IN, IN, IN, IN, I, I, I, I, OUT))
    def select(
        opened: Any, values: Any, own: Any, dealt: Any, masks: Any, party: int, width: int,
        ring: int, place: int, out: Any,
    ) -> None:  # fmt: skip
        """Own share of the maximum, masked. own: share of the candidates' masks; place: of
        products."""
        last = arity - 1
        subsets = 1 << last
        count = arity * (arity - 1) // 2
        total = count + last * (subsets - 1 - last) + last * (subsets - 1)
        keep, rivals = ONES >> np.uint64(64 - ring), np.uint64(subsets - 1)
        one = ONE if party == 0 else ZERO
        for e in range(out.shape[0]):
            base, first = place + e * total * ring, e * arity
            made = values[first + last] * one - own[first + last] + masks[e]
            several = base + count * ring
            gated = base + (count + last * (subsets - 1 - last)) * ring
            for i in range(last):
                delta = values[first + i] - values[first + last]
                rho = own[first + i] - own[first + last]
                ahead, where = ZERO, ZERO  # bit t: P of the t-th rival; 3 bits a rival: its pair
                t = 0
                for j in range(arity):
                    if j != i:
                        pair = pair_at(i, j, arity) if i < j else pair_at(j, i, arity)
                        difference = (
                            values[first + i] - values[first + j]
                            if i < j
                            else values[first + j] - values[first + i]
                        )
                        top = (difference >> np.uint64(width - 1)) & ONE
                        bit = ((opened[e] >> np.uint64(pair)) & ONE) ^ top
                        if i < j:
                            bit ^= ONE
                        ahead |= bit << np.uint64(t)
                        where |= np.uint64(pair) << np.uint64(3 * t)
                        t += 1
                for sub in range(subsets):
                    inside = np.uint64(sub)
                    size, minus, single = 0, ZERO, np.int64(0)
                    for t in range(last):
                        if (inside >> np.uint64(t)) & ONE:
                            size += 1
                            minus ^= (ahead >> np.uint64(t)) & ONE
                            single = np.int64((where >> np.uint64(3 * t)) & np.uint64(7))
                    # Rivals outside the subset contribute their public bit, which must be 1; no
                    # branch on it, since it is random.
                    count_in = ZERO - np.uint64((~inside & ~ahead & rivals) == ZERO)
                    if size == 0:
                        term = delta * one - rho
                    else:
                        at = base + single * ring if size == 1 else several
                        term = delta * read(dealt, at, ring) - read(dealt, gated, ring)
                    made += ((term ^ (ZERO - minus)) + minus) & count_in
                    if size > 1:
                        several += ring
                    if size > 0:
                        gated += ring
            out[e] = made & keep

    return select


def dealing(arity: int) -> Callable[..., None]:
    """``DEAL`` of so many candidates."""

    @kernel(types.void(IN, IN, OUT, I, I, I, I))
    def deal(r: Any, free: Any, dealt: Any, width: int, ring: int, place: int, skip: int) -> None:
        """Party 0's stream in ``dealt`` becomes party 1's corrections, of products. r: [n · arity]
        masks. The comparisons' own begin at bit ``skip`` of ``free``."""
        last = arity - 1
        subsets = 1 << last
        count = arity * (arity - 1) // 2
        total = count + last * (subsets - 1 - last) + last * (subsets - 1)
        for e in range(free.shape[0]):
            bits, base, t = ZERO, place + e * total * ring, 0
            for i in range(last):
                for j in range(i + 1, arity):
                    difference = r[e * arity + i] - r[e * arity + j]
                    top = (difference >> np.uint64(width - 1)) & ONE
                    bit = ((free[e] >> np.uint64(skip + t)) & ONE) ^ top
                    bits |= bit << np.uint64(t)
                    correct(dealt, base + t * ring, ring, bit)
                    t += 1
            several = base + count * ring
            gated = base + (count + last * (subsets - 1 - last)) * ring
            for i in range(last):
                rho = r[e * arity + i] - r[e * arity + last]
                won, t = ZERO, 0
                for j in range(arity):
                    if j != i:
                        pair = pair_at(i, j, arity) if i < j else pair_at(j, i, arity)
                        won |= ((bits >> np.uint64(pair)) & ONE) << np.uint64(t)
                        t += 1
                for sub in range(1, subsets):
                    inside = np.uint64(sub)
                    size = 0
                    for t in range(last):
                        size += 1 if (inside >> np.uint64(t)) & ONE else 0
                    n = ONE if (won & inside) == inside else ZERO
                    if size > 1:
                        correct(dealt, several, ring, n)
                        several += ring
                    correct(dealt, gated, ring, n * (rho & (ONES >> np.uint64(64 - ring))))
                    gated += ring

    return deal


SELECT = {arity: selector(arity) for arity in (2, 3, 4)}
DEAL = {arity: dealing(arity) for arity in (2, 3, 4)}
"""By arity."""
