"""Ferret: many correlated OTs from few, semi-honest, on LPN over GF(2) with regular noise.

The owner of Δ is the *sender*. Of ``reserve`` COTs w = v ⊕ u·Δ that both have,

- ``secret`` are multiplied by a public matrix of ``samples`` rows with ten ones each,
- ``depth`` go into each of ``trees`` trees: the sender's 2^depth leaves sum to Δ, and the chooser
  learns all but the one that its bits u name, in whose place it puts the sum of the others.

The rows' products plus the leaves are ``samples`` new COTs with the same Δ, whose choice bits are
samples of LPN: random to the sender. The first ``reserve`` of them make the next batch. The sender
sends a block a level of every tree but for the first level, and nothing goes back: noisy places are
the random bits that the chooser has already.

Bit 1 of Δ is 1 and of every w is 0, so that bit 1 of v is the choice bit: it goes through trees and
matrix with the rest.

Source: K. Yang, C. Weng, X. Lan, J. Zhang and X. Wang, "Ferret: fast extension for correlated OT
with small communication", CCS 2020. Trees: X. Guo et al., "Half-Tree", EUROCRYPT 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secure_quant.errors import MalformedMessage
from secure_quant.keystream import Keystream
from secure_quant.onehost import kernels
from secure_quant.onehost.permutation import FERRET, Words

__all__ = ["LPN", "MARK", "Chooser", "Lpn", "Sender", "choice_bits"]

MARK = np.uint64(2)
"""Of the lower half of a block: the choice bit."""
ONES = 10
"""Ones in a row of the matrix. Rows may have a place twice, which then counts as none."""
_TREES = 64
"""Trees that grow at once: their nodes stay in the cache."""
_ROWS = 2**12
"""Rows that are drawn at once."""


@dataclass(frozen=True)
class Lpn:
    """secret: LPN's secret bits. trees: noisy places, one in each block of 2^depth samples."""

    secret: int
    trees: int
    depth: int

    @property
    def samples(self) -> int:
        """COTs of a batch."""
        return self.trees << self.depth

    @property
    def reserve(self) -> int:
        """COTs that a batch takes."""
        return self.secret + self.trees * self.depth

    @property
    def made(self) -> int:
        """COTs that a batch leaves, when the next one's are put aside."""
        return self.samples - self.reserve

    @property
    def batch_bytes(self) -> int:
        """What the sender sends for a batch."""
        return 16 * self.trees * (self.depth - 1)

    @property
    def held_bytes(self) -> int:
        """What an end of a pairing holds between items, at most: the rest of a batch in each
        direction, the own choice bits a word each, and what the next ones take."""
        return 2 * 16 * (self.made + self.reserve) + 8 * self.made


LPN = Lpn(secret=73728, trees=1280, depth=9)
"""What is served. tools/lpn_estimate.py: 141 bits and more by every attack it knows."""


def choice_bits(v: Words) -> Words:
    """Of a chooser's blocks: uint64[n] of 0 and 1."""
    return v[:, 0] >> np.uint64(1) & np.uint64(1)


class _End:
    """What both ends do: COTs put aside, and the public matrix, never the same rows twice."""

    def __init__(self, lpn: Lpn, code: bytes, base: Words) -> None:
        """code: public seed of the matrix, 32 bytes. base: uint64[reserve, 2], marked."""
        if base.shape != (lpn.reserve, 2):
            raise ValueError("a batch takes exactly its reserve")
        self._lpn, self._rows, self._base = lpn, Keystream(code), base

    def _mixed(self, leaves: Words) -> Words:
        """Leaves plus the rows' products, and the first put aside: uint64[made, 2]."""
        secret = np.ascontiguousarray(self._base[: self._lpn.secret])
        for first in range(0, len(leaves), _ROWS):
            part = leaves[first : first + _ROWS]
            kernels.mix(self._rows.words(ONES // 2 * len(part)), secret, part)
        self._base = leaves[: self._lpn.reserve]
        return leaves[self._lpn.reserve :]

    def _levels(self) -> Words:
        """The trees' COTs: uint64[trees, depth, 2]."""
        return self._base[self._lpn.secret :].reshape(self._lpn.trees, self._lpn.depth, 2)


class Sender(_End):
    """The end that owns Δ, uint64[2], whose bit 1 is 1."""

    def __init__(self, lpn: Lpn, code: bytes, delta: Words, w: Words) -> None:
        """w: uint64[reserve, 2]."""
        super().__init__(lpn, code, _unmarked(w))
        if not delta[0] & MARK:
            raise ValueError("bit 1 of Δ is to be 1")
        self._delta = delta

    def extend(self, batches: int) -> tuple[bytes, list[Words]]:
        """(message, w: uint64[made, 2] of each batch)."""
        sent, made = [], []
        for _ in range(batches):
            leaves, sums = self._grown(self._levels())
            sent.append(sums.astype("<u8").tobytes())
            made.append(self._mixed(leaves))
        return b"".join(sent), made

    def _grown(self, levels: Words) -> tuple[Words, Words]:
        """(marked leaves, sums of the left nodes of every level, each under its w)."""
        trees, depth = levels.shape[:2]
        leaves = np.empty((trees, 2**depth, 2), np.uint64)
        leaves[:, 0], leaves[:, 1] = levels[:, 0], levels[:, 0] ^ self._delta
        sums = levels[:, 1:].copy()
        for first in range(0, trees, _TREES):
            part = leaves[first : first + _TREES]
            for level in range(1, depth):
                turned = _turned(part, level)
                kernels.grow(part, turned, FERRET(turned), sums[first : first + _TREES, level - 1])
        leaves[..., 0] &= ~MARK
        return leaves.reshape(-1, 2), sums


class Chooser(_End):
    """The end with the choice bits."""

    def __init__(self, lpn: Lpn, code: bytes, u: Words, v: Words) -> None:
        """u: uint64[reserve] of 0 and 1; v: uint64[reserve, 2]."""
        base = _unmarked(v)
        base[:, 0] |= u << np.uint64(1)
        super().__init__(lpn, code, base)

    def extend(self, batches: int, message: bytes) -> list[Words]:
        """v: uint64[made, 2] of each batch, of which ``choice_bits`` tells u. Raises
        MalformedMessage."""
        lpn = self._lpn
        if len(message) != batches * lpn.batch_bytes:
            expected = batches * lpn.batch_bytes
            raise MalformedMessage("bytes of an extension", got=len(message), expected=expected)
        whole = np.frombuffer(message, "<u8").astype(np.uint64)
        sums = whole.reshape(batches, lpn.trees, lpn.depth - 1, 2)
        return [self._mixed(self._grown(self._levels(), each)) for each in sums]

    def _grown(self, levels: Words, sums: Words) -> Words:
        """Marked leaves: all that are known, and in the place of the other their sum."""
        trees, depth = levels.shape[:2]
        sides = choice_bits(levels.reshape(-1, 2)).reshape(trees, depth).astype(np.int64)
        known = levels[:, 1:] ^ sums  # of a level, the sum of the nodes on the side of the bit
        leaves = np.zeros((trees, 2**depth, 2), np.uint64)
        leaves[np.arange(trees), sides[:, 0]] = levels[:, 0]
        places = 1 - sides[:, 0]
        for first in range(0, trees, _TREES):
            some = slice(first, first + _TREES)
            part = leaves[some]
            for level in range(1, depth):
                turned = _turned(part, level)
                kernels.grow_but_one(
                    part, turned, FERRET(turned), known[some, level - 1], sides[some, level],
                    places[some],
                )  # fmt: skip
            kernels.close(part, places[some])
        return leaves.reshape(-1, 2)


def _turned(nodes: Words, level: int) -> Words:
    """σ of a level's nodes, which stand first: uint64[trees, 2^level, 2]."""
    made = np.empty((len(nodes), 2**level, 2), np.uint64)
    now = nodes[:, : 2**level]
    np.bitwise_xor(now[..., 0], now[..., 1], out=made[..., 0])
    made[..., 1] = now[..., 0]
    return made


def _unmarked(blocks: Words) -> Words:
    """A copy with the choice bits 0."""
    made = blocks.copy()
    made[:, 0] &= ~MARK
    return made
