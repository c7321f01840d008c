"""Compiled loops over blocks of bits: the extension's sums and transposes, and wide elements.

Like ``secure_quant.mpc.kernels``, whose ``kernel`` fixes the signatures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from secure_quant.mpc.kernels import load
from secure_quant.mpc.kernels.bits import ONE, ONES, OUT, ZERO, I, flip, kernel, read
from secure_quant.mpc.kernels.simd import LANES, exchange, popcount

__all__ = [
    "borrowed", "close", "cut", "cut_rows", "fold", "grow", "grow_but_one", "hide", "hide_number",
    "join", "larger", "look_up", "mix", "open_hidden", "open_number", "transpose",
]  # fmt: skip

load()  # gates' loops too: a peer that waits is not to wait for a compiler

U = types.uint64
IN = types.Array(U, 1, "C", readonly=True)
IN2 = types.Array(U, 2, "C", readonly=True)
OUT2 = types.Array(U, 2, "C")
INT2 = types.Array(I, 2, "C", readonly=True)
IN3 = types.Array(U, 3, "C", readonly=True)
OUT3 = types.Array(U, 3, "C")
ANY2 = types.Array(U, 2, "A")


@kernel(types.void(OUT2, OUT, OUT2))
def fold(streams: Any, total: Any, weighted: Any) -> None:
    """streams: [2^depth leaves, words], overwritten. total: XOR of all. weighted: [depth, words],
    XOR of those with bit b of their number."""
    half, words = streams.shape[0] >> 1, streams.shape[1]
    for row in range(weighted.shape[0] - 1, -1, -1):
        for w in range(words):
            weighted[row, w] = ZERO
        for x in range(half):
            for w in range(words):
                top = streams[half + x, w]
                weighted[row, w] ^= top
                streams[x, w] ^= top
        half >>= 1
    for w in range(words):
        total[w] = streams[0, w]


@kernel(types.void(IN2, OUT2))
def transpose(columns: Any, rows: Any) -> None:
    """columns: [128, words], bit i of column j becomes bit j of row i in rows: [64 · words, 2].

    Squares of 32 bits change places across the diagonal, then those of 16 in each, and so on."""
    block = np.zeros((128, LANES), np.uint64)
    for first in range(0, columns.shape[1], LANES):
        lanes = min(LANES, columns.shape[1] - first)
        for k in range(128):
            for lane in range(lanes):
                block[k, lane] = columns[k, first + lane]
        step, keep = np.uint64(32), np.uint64(0xFFFFFFFF)
        while step:
            for k in range(np.uint64(128)):
                if k & step == ZERO:
                    exchange(block, k, k + step, step, keep)
            step >>= ONE
            keep ^= keep << step
        for lane in range(lanes):
            for i in range(64):
                row = 64 * (first + lane) + i
                rows[row, 0], rows[row, 1] = block[i, lane], block[64 + i, lane]


@kernel(types.void(IN2, IN2, IN2, I, OUT, OUT2))
def hide(zero: Any, one: Any, own: Any, bits: int, words: Any, kept: Any) -> None:
    """zero ⊕ one ⊕ own, of each the lowest ``bits``, end to end into zeroed ``words``; and zero in
    ``kept``: [n, ceil(bits / 64)]. The pads may have a word more."""
    for i in range(kept.shape[0]):
        place, left = i * bits, bits
        for v in range(kept.shape[1]):
            size = min(left, 64)
            low = ONES >> np.uint64(64 - size)
            pad = zero[i, v] & low
            value = pad ^ ((one[i, v] ^ own[i, v]) & low)
            kept[i, v] = pad
            flip(words, place, size, value)
            place += 64
            left -= 64


@kernel(types.void(IN, I, IN2, IN, IN2, OUT2))
def open_hidden(words: Any, bits: int, pads: Any, choice: Any, own: Any, kept: Any) -> None:
    """Of what ``hide`` sent, read with the ``pads`` of the own choice bits: kept ^= pad ⊕
    choice · (sent ⊕ own), the lowest ``bits`` of each."""
    for i in range(kept.shape[0]):
        place, left, every = i * bits, bits, ZERO - choice[i]
        for v in range(kept.shape[1]):
            size = min(left, 64)
            low = ONES >> np.uint64(64 - size)
            sent = read(words, place, size)
            kept[i, v] ^= (pads[i, v] ^ ((sent ^ own[i, v]) & every)) & low
            place += 64
            left -= 64


@kernel(types.void(IN2, IN2, IN, I, OUT, OUT))
def hide_number(zero: Any, one: Any, factor: Any, bits: int, words: Any, kept: Any) -> None:
    """zero - one + factor mod 2^bits, end to end into zeroed ``words``, and -zero in ``kept``."""
    low = ONES >> np.uint64(64 - bits)
    for i in range(kept.shape[0]):
        flip(words, i * bits, bits, (zero[i, 0] - one[i, 0] + factor[i]) & low)
        kept[i] = (ZERO - zero[i, 0]) & low


@kernel(types.void(IN, I, IN2, IN, OUT))
def open_number(words: Any, bits: int, pads: Any, choice: Any, made: Any) -> None:
    """Of what ``hide_number`` sent: pad + choice · sent mod 2^bits."""
    low = ONES >> np.uint64(64 - bits)
    for i in range(made.shape[0]):
        made[i] = (pads[i, 0] + choice[i] * read(words, i * bits, bits)) & low


@kernel(types.void(IN2, I, OUT))
def join(values: Any, bits: Any, words: Any) -> None:
    """values: [n, ceil(bits / 64)], lowest word first and zero above ``bits``, end to end into
    zeroed ``words``."""
    for i in range(values.shape[0]):
        place, left = i * bits, bits
        for v in range(values.shape[1]):
            flip(words, place, min(left, 64), values[i, v])
            place += 64
            left -= 64


@kernel(types.void(IN, I, OUT2))
def cut(words: Any, bits: Any, values: Any) -> None:
    """The reverse of ``join``."""
    for i in range(values.shape[0]):
        place, left = i * bits, bits
        for v in range(values.shape[1]):
            size = min(left, 64)
            values[i, v] = read(words, place, size) & (ONES >> np.uint64(64 - size))
            place += 64
            left -= 64


@kernel(types.void(IN2, I, OUT2))
def cut_rows(words: Any, bits: int, values: Any) -> None:
    """Numbers of ``bits`` bits from the beginning of every row: values: [n, numbers]."""
    for i in range(values.shape[0]):
        row = words[i]
        for j in range(values.shape[1]):
            values[i, j] = read(row, j * bits, bits)


@kernel(types.void(IN, IN2, INT2, OUT))
def look_up(numbers: Any, tables: Any, places: Any, out: Any) -> None:
    """What the tables say of every digit, bit by bit. tables: [n, words]. places: of a digit its
    first bit and width, the first word of its table, and that of another or -1."""
    for i in range(numbers.shape[0]):
        made, fill = ZERO, ZERO
        for d in range(places.shape[0]):
            first, width = np.uint64(places[d, 0]), np.uint64(places[d, 1])
            digit = (numbers[i] >> first) & ((ONE << width) - ONE)
            word, bit = np.int64(digit >> np.uint64(6)), digit & np.uint64(63)
            for j in range(2, 4):
                if places[d, j] >= 0:
                    made |= ((tables[i, places[d, j] + word] >> bit) & ONE) << fill
                    fill += ONE
        out[i] = made


@kernel(types.void(IN, IN, IN, OUT))
def borrowed(opened: Any, kappa: Any, known: Any, out: Any) -> None:
    """The XOR of the known products that ``kappa`` names for what was opened, XORed to out."""
    for i in range(opened.shape[0]):
        out[i] ^= popcount(kappa[opened[i]] & known[i]) & ONE


@kernel(types.void(IN, IN, IN, IN, IN2, I, I, OUT))
def larger(
    first: Any, second: Any, numbers: Any, opened: Any, own: Any, party: int, bits: int, out: Any
) -> None:
    """Own share of the larger of two, masked, mod 2^bits. numbers: 1 ⊕ top bits of c, that is P
    before the opened bit. own: shares of r_0, r_1, n, n·(r_0 - r_1) and the new mask, in rows."""
    keep = ONES >> np.uint64(64 - bits)
    for i in range(first.shape[0]):
        won = opened[i] ^ numbers[i]
        difference = first[i] - second[i]
        # s·(y_0 - y_1) = P·(D - ρ) + (1 - 2P)·(n·D - n·ρ)
        gain = own[1, i] - own[0, i]
        made = own[4, i] - own[1, i]
        if party == 0:
            gain += difference
            made += second[i]
        term = own[2, i] * difference - own[3, i]
        if won:
            made += gain - term
        else:
            made += term
        out[i] = made & keep


@kernel(types.void(IN, IN2, OUT2))
def mix(rows: Any, secret: Any, out: Any) -> None:
    """Row i of a matrix with ten ones, times ``secret``, XORed to out[i]. rows: five words a row,
    each half of which names a place."""
    size = np.uint64(secret.shape[0])
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    for i in range(out.shape[0]):
        one, two = out[i, 0], out[i, 1]
        for j in range(5 * i, 5 * i + 5):
            a = np.int64(((rows[j] & low) * size) >> half)
            b = np.int64(((rows[j] >> half) * size) >> half)
            one ^= secret[a, 0] ^ secret[b, 0]
            two ^= secret[a, 1] ^ secret[b, 1]
        out[i, 0], out[i, 1] = one, two


@kernel(types.void(OUT3, IN3, IN3, ANY2))
def grow(nodes: Any, turned: Any, permuted: Any, sums: Any) -> None:
    """A level of every tree becomes the next: left children in the place of the nodes, right ones
    after them. turned: σ of the nodes; permuted: π of that. The left ones' sum is XORed to sums."""
    size = turned.shape[1]
    for t in range(nodes.shape[0]):
        one, two = ZERO, ZERO
        for i in range(size):
            a, b = turned[t, i, 0] ^ permuted[t, i, 0], turned[t, i, 1] ^ permuted[t, i, 1]
            one ^= a
            two ^= b
            nodes[t, size + i, 0], nodes[t, size + i, 1] = nodes[t, i, 0] ^ a, nodes[t, i, 1] ^ b
            nodes[t, i, 0], nodes[t, i, 1] = a, b
        sums[t, 0] ^= one
        sums[t, 1] ^= two


@kernel(types.void(OUT3, IN3, IN3, ANY2, types.Array(I, 1, "A"), types.Array(I, 1, "A")))
def grow_but_one(
    nodes: Any, turned: Any, permuted: Any, known: Any, sides: Any, places: Any
) -> None:
    """The same where one node is not known, in ``places``, which is set to its child's that is not.
    known: the sum of the children on the side that ``sides`` says; the other one is set to 0."""
    size = turned.shape[1]
    for t in range(nodes.shape[0]):
        one, two, side, hole = known[t, 0], known[t, 1], sides[t], places[t]
        for i in range(size):
            a, b = turned[t, i, 0] ^ permuted[t, i, 0], turned[t, i, 1] ^ permuted[t, i, 1]
            c, d = nodes[t, i, 0] ^ a, nodes[t, i, 1] ^ b
            if i == hole:
                a = b = c = d = ZERO
            nodes[t, size + i, 0], nodes[t, size + i, 1] = c, d
            nodes[t, i, 0], nodes[t, i, 1] = a, b
            one ^= c if side else a
            two ^= d if side else b
        nodes[t, hole + side * size, 0], nodes[t, hole + side * size, 1] = one, two
        places[t] = hole + (1 - side) * size


@kernel(types.void(OUT3, types.Array(I, 1, "A")))
def close(leaves: Any, places: Any) -> None:
    """The leaf that is not known becomes the sum of the others. Bit 1 of a leaf is then whether it
    is that one."""
    mark = np.uint64(2)
    for t in range(leaves.shape[0]):
        one, two = ZERO, ZERO
        for i in range(leaves.shape[1]):
            one ^= leaves[t, i, 0]
            two ^= leaves[t, i, 1]
            leaves[t, i, 0] &= ~mark
        leaves[t, places[t], 0], leaves[t, places[t], 1] = one | mark, two
