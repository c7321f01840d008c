"""The borrow of a subtraction of a masked value's digits, from lookups of one digit each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

__all__ = ["Borrow"]

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Borrow:
    """b = [c0 < r0] from digits, lowest first: l_i = [c_i < r_i] and, above the lowest,
    e_i = [c_i = r_i]; b = l_top ^ e_top·(l_next ^ e_next·(...)).

    Variables in order l_0, l_1, e_1, l_2, e_2, ... The products of masks that b needs are listed by
    ``products`` (bit sets of variables), single ones first.
    """

    digits: tuple[int, ...]

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(first bit, bits) of every digit."""
        return tuple(zip(accumulate(self.digits, initial=0), self.digits, strict=False))

    @property
    def variables(self) -> int:
        return max(2 * len(self.digits) - 1, 0)

    @property
    def terms(self) -> tuple[int, ...]:
        """b as an XOR of products of variables; at most one of them is 1."""
        return _terms(len(self.digits))

    @property
    def products(self) -> tuple[int, ...]:
        """Every nonempty subset of a term."""
        return _products(len(self.digits))

    @cached_property
    def kappa(self) -> Words:
        """By the opened variables p: which mask products XOR to b; bit 0 stands for 1, bit 1 + i
        for products[i]. From Π (p_i ^ n_i) = XOR_U Π_{i not in U} p_i · n_U."""
        return self.kappa_of(len(self.digits))

    def kappa_of(self, lower: int) -> Words:
        """The same for the borrow of the ``lower`` lowest digits: its products are among these."""
        return _kappa(len(self.digits), lower)

    @cached_property
    def factors(self) -> Words:
        """By the opened variables p: the integer b = [0] + Σ_i [1 + i]·(product products[i] of
        masks), mod 2^64. From Π (p_i + (1 - 2·p_i)·n_i), of terms of which at most one is 1."""
        return _factors(len(self.digits))

    @cached_property
    def monomials(self) -> Words:
        """By the masks n: bit i is the product of masks products[i]."""
        n = np.arange(1 << self.variables, dtype=np.uint64)
        return _bits(len(n), ((n & np.uint64(sub)) == np.uint64(sub) for sub in self.products))


def _terms(digits: int) -> tuple[int, ...]:
    terms, above = [], 0
    for i in reversed(range(digits)):
        low = 0 if i == 0 else 2 * i - 1
        terms.append(above | 1 << low)
        if i:
            above |= 1 << (low + 1)
    return tuple(terms)


@lru_cache
def _products(digits: int) -> tuple[int, ...]:
    found = {sub for term in _terms(digits) for sub in _subsets(term) if sub}
    return tuple(sorted(found, key=lambda sub: (sub.bit_count(), sub)))


@lru_cache
def _kappa(digits: int, lower: int) -> Words:
    p = np.arange(1 << max(2 * digits - 1, 0), dtype=np.uint64)

    def hits(sub: int) -> NDArray[np.bool_]:
        made = np.zeros(len(p), np.bool_)
        for term in _terms(lower):
            if term & sub == sub:
                rest = np.uint64(term & ~sub)
                made ^= (p & rest) == rest
        return made

    made = _bits(len(p), (hits(sub) for sub in (0, *_products(digits))))
    made.flags.writeable = False
    return made


@lru_cache
def _factors(digits: int) -> Words:
    p = np.arange(1 << max(2 * digits - 1, 0), dtype=np.int64)
    columns = []
    for sub in (0, *_products(digits)):
        made = np.zeros(len(p), np.int64)
        for term in _terms(digits):
            if term & sub == sub:
                made += (p & (term & ~sub)) == term & ~sub
        for i in range(2 * digits - 1):
            if sub >> i & 1:
                made *= 1 - 2 * (p >> i & 1)
        columns.append(made)
    table: Words = np.ascontiguousarray(np.stack(columns, 1)).astype(np.uint64)
    table.flags.writeable = False
    return table


def _bits(count: int, planes: Iterator[NDArray[np.bool_]]) -> Words:
    """``count`` words: bit i of each is from the i-th plane."""
    made = np.zeros(count, np.uint64)
    for i, plane in enumerate(planes):
        made |= plane.astype(np.uint64) << np.uint64(i)
    return made


def _subsets(whole: int) -> Iterator[int]:
    sub = whole
    while True:
        yield sub
        if not sub:
            return
        sub = (sub - 1) & whole
