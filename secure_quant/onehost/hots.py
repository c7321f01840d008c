"""Shared one-hots of shared digits: e over 2^w places with e_j = [ρ = j], XOR-shared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secure_quant.errors import MalformedMessage
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.onehost.cot import Column
from secure_quant.onehost.exchange import Joint
from secure_quant.onehost.permutation import LEAVES, TREES, Words
from secure_quant.onehost.products import gated, opened_bits

__all__ = ["DIRECT", "hot", "hot_bits", "hot_bytes", "prefixes"]

LOW = 7
"""Bits below a half-tree: its leaves are blocks of 2^7 places."""
DIRECT = 8
"""The widest digit without a half-tree."""


def hot_parts(width: int) -> list[int]:
    """Bits per element of every exchange, each way."""
    if width <= DIRECT:
        return [2**i - 1 for i in range(1, width)]
    return [2**i - 1 for i in range(1, LOW)] + [128] * (width - DIRECT + 1)


def hot_bits(width: int) -> int:
    """What each party sends for an element: 2^w - w - 1, or 120 + 128·(w - 8) + 128."""
    return sum(hot_parts(width))


def hot_bytes(width: int, count: int) -> int:
    """What each party sends for ``count`` elements."""
    return sum(packed_bytes(count, bits) for bits in hot_parts(width))


def hot(columns: Sequence[Column], party: int, delta: Words, purpose: str) -> Joint[Words]:
    """This party's share, uint64[n, ceil(2^w / 64)], of the one-hot of the digit whose bits are
    ``columns``, lowest first. All but the first are of BOTH. delta: this party's, uint64[2].
    purpose: which permutations a half-tree uses."""
    if len(columns) <= DIRECT:
        return (yield from _direct(columns, party))
    low = yield from _direct(columns[:LOW], party)
    return (yield from _tree(columns[LOW:], low, delta, purpose))


def _direct(columns: Sequence[Column], party: int) -> Joint[Words]:
    """Bit by bit: e -> (e ⊕ f, f) with f = ρ_i·e, whose last entry is ρ_i ⊕ the others."""
    first = columns[0].own
    e = (first ^ np.uint64(party == 0) | first << np.uint64(1))[:, None]
    for i, column in enumerate(columns[1:], start=1):
        places = 2**i - 1
        last_word, last = places // 64, np.uint64(places % 64)
        known = e.copy()
        known[:, last_word] &= (np.uint64(1) << last) - np.uint64(1)
        f = yield from gated(column, known, places)
        f[:, last_word] |= (column.own ^ _parity(f)) << last
        narrow = 2**i < 64
        e = e ^ f | f << np.uint64(2**i) if narrow else np.concatenate([e ^ f, f], axis=1)
    return e


def _parity(x: Words) -> Words:
    ones = np.bitwise_count(np.bitwise_xor.reduce(x, axis=1))
    made: Words = ones.astype(np.uint64) & np.uint64(1)
    return made


def _tree(columns: Sequence[Column], low: Words, delta: Words, purpose: str) -> Joint[Words]:
    """The half-tree of Guo et al. (EUROCRYPT 2023) with an early end, over both parties' Δ.

    Both hold seeds that are equal off the hot place and differ by Δ on it, so that the lowest bits
    share the one-hot. A level's correction makes the children of the hot seed differ by Δ on one
    side and by nothing on the other. A leaf is a block of 2^7 places.
    """
    node, leaf = TREES[purpose], LEAVES[purpose]
    right = columns[0].halves(purpose)
    seeds = np.stack([right ^ delta, right], axis=1)  # [n, nodes, 2]
    for column in columns[1:]:
        hashed = node.circular(seeds)
        own = np.bitwise_xor.reduce(hashed, axis=1) ^ column.halves(purpose) ^ delta
        left = yield from _corrected(seeds, hashed, own)
        seeds = np.concatenate([left, left ^ seeds], axis=1)
    hashed = leaf.circular(seeds)
    blocks = yield from _corrected(seeds, hashed, np.bitwise_xor.reduce(hashed, axis=1) ^ low)
    return blocks.reshape(len(blocks), -1)


def _corrected(seeds: Words, hashed: Words, own: Words) -> Joint[Words]:
    """hashed ⊕ t·(both parties' ``own``), t the lowest bits of ``seeds``."""
    correction = yield from opened_bits(own, 128)
    t = np.uint64(0) - (seeds[..., :1] & np.uint64(1))
    return hashed ^ (t & correction[:, None, :])


def prefixes(e: Words, width: int) -> Words:
    """From shares of the one-hot of ρ those of [c < ρ] for every c: P_c = XOR of e_j for j > c."""
    if e.shape[1] != max(2**width // 64, 1):
        raise MalformedMessage("words of a one-hot", got=e.shape[1])
    size = min(2**width, 64)
    made, beyond = np.empty_like(e), np.zeros(len(e), np.uint64)
    for w in reversed(range(e.shape[1])):
        x = e[:, w]
        by = 1
        while by < size:  # bit c: XOR of bits c and above
            x = x ^ x >> np.uint64(by)
            by *= 2
        every = np.uint64(0) - beyond
        made[:, w] = (x >> np.uint64(1)) ^ (every & np.uint64((1 << size) - 1))
        beyond = beyond ^ (x & np.uint64(1))
    return made
