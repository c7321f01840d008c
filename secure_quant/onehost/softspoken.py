"""SoftSpokenOT: correlated OTs from 128 base OTs, semi-honest, over fields of up to 2^κ elements.

Δ of the sender is cut into parts of κ bits, the last of what is left. For each part the chooser
owns a tree of 2^bits seeds; the sender holds every leaf but the one whose number is that part of Δ,
by a base OT a level on the sums of left and of right nodes. The leaves' streams give the chooser u
(its random choice bits) and v, the sender w, with

    w = v ⊕ u·Δ        128 bits each, for every COT.

The chooser sends a bit a COT for every part but the first, and nothing comes back. Semi-honest is
all that is claimed: with these base OTs a consistency check would give no assurance.

Source: L. Roy, "SoftSpokenOT: quieter OT extension from small-field silent VOLE in the Minicrypt
model", CRYPTO 2022.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from secure_quant.errors import MalformedMessage
from secure_quant.onehost import kernels
from secure_quant.onehost.permutation import CHILDREN, Words

__all__ = [
    "GRAIN", "SECURITY", "Chooser", "Field", "Sender", "extension_bits", "extension_bytes", "parts",
]  # fmt: skip

Field = Literal[4, 6, 8]
"""κ: 4 is fastest, 8 sends least."""

SECURITY = 128
GRAIN = 128
"""COTs come in multiples of this: a block of every leaf's stream."""
_CHUNK = 2**17
"""COTs that are made at once, a tree after the other, so that its streams stay in the cache."""
_COUNTER = modes.GCM(bytes(12))
"""AES in counter mode from block 2 on: that of GCM, whose tag is never asked for, since OpenSSL
runs it half as fast again as the mode called CTR."""


def parts(field: Field) -> list[int]:
    """Bits of Δ that each tree stands for, lowest first."""
    whole, rest = divmod(SECURITY, field)
    return [field] * whole + ([rest] if rest else [])


def extension_bits(field: Field) -> int:
    """What a chooser sends for a COT."""
    return len(parts(field)) - 1


def extension_bytes(count: int, field: Field) -> int:
    """What a chooser sends for ``count`` COTs, a multiple of GRAIN."""
    return extension_bits(field) * count // 8


def _children(nodes: Words) -> Words:
    """[n, 2] -> [n, 2 sides, 2]: the seeds below each."""
    return np.stack([child.hash(nodes) for child in CHILDREN], axis=1)


class _Streams:
    """AES-128 in counter mode, from block 2 on, under every leaf of a tree. Not safe to share
    between threads."""

    def __init__(self, leaves: Words) -> None:
        """leaves: uint64[n, 2]; one of zeros in place 0 is unknown and gives zeros."""
        self._streams: list[CipherContext | None] = [
            Cipher(algorithms.AES(seed.tobytes()), _COUNTER).encryptor()
            if seed.any() else None
            for seed in leaves.astype("<u8")
        ]  # fmt: skip

    def sums(self, room: _Room, weighted: Words) -> Words:
        """Of the next bits of all, as many as there is room for: their XOR, uint64[words].
        weighted: for bit b of a leaf's number the XOR of those that have it, uint64[depth, words],
        is written."""
        for row, stream in zip(room.rows, self._streams, strict=False):
            if stream is None:
                row[:] = room.zeros
            else:
                stream.update_into(room.zeros, row)
        made = room.words[: len(self._streams)].astype(np.uint64, copy=False)
        kernels.fold(made, total := np.empty(made.shape[1], np.uint64), weighted)
        return total


class _Room:
    """Where the streams of one tree after the other are written, ``count`` bits of each."""

    def __init__(self, leaves: int, count: int) -> None:
        self.words = np.empty((leaves, count // 64), "<u8")
        self.rows = [row.data for row in self.words.view(np.uint8)]
        self.zeros = bytes(count // 8)


def _rooms(count: int, field: Field) -> Iterator[_Room]:
    """For ``count`` COTs, a chunk after the other."""
    if count % GRAIN:
        raise ValueError(f"COTs come in multiples of {GRAIN}")
    whole, rest = divmod(count, _CHUNK)
    if whole:
        yield from repeat(_Room(2**field, _CHUNK), whole)
    if rest:
        yield _Room(2**field, rest)


def _summed(trees: Sequence[_Streams], room: _Room, field: Field) -> tuple[Words, Words]:
    """(sums of the trees' leaves, weighted sums by bit of Δ): [trees, words], [128, words]."""
    words = room.words.shape[1]
    weighted, first, totals = np.empty((SECURITY, words), np.uint64), 0, []
    for tree, depth in zip(trees, parts(field), strict=True):
        totals.append(tree.sums(room, weighted[first : first + depth]))
        first += depth
    return np.stack(totals), weighted


def _rows(columns: Words) -> Words:
    made = np.empty((64 * columns.shape[1], 2), np.uint64)
    kernels.transpose(columns, made)
    return made


class Chooser:
    """The end that gets random choice bits. keys: both keys of every base OT, where it sends."""

    def __init__(self, keys: Words, field: Field) -> None:
        self._field, self._trees, sums = field, list[_Streams](), []
        for depth in parts(field):
            nodes = np.frombuffer(secrets.token_bytes(16), np.uint64).reshape(1, 2)
            for _ in range(depth):
                below = _children(nodes)
                sums.append(np.bitwise_xor.reduce(below, axis=0))  # [2 sides, 2]
                nodes = below.reshape(-1, 2)
            self._trees.append(_Streams(nodes))
        self.message = (np.stack(sums) ^ keys).astype("<u8").tobytes()
        """For the sender: the sums of every level, each under its key."""

    def extend(self, count: int) -> tuple[bytes, list[Words], list[Words]]:
        """(message, u: uint64[n] of 0 and 1, v: uint64[n, 2]), in pieces of ``count`` in all."""
        sent, bits, blocks = [], [], []
        for room in _rooms(count, self._field):
            total, weighted = _summed(self._trees, room, self._field)
            sent.append((total[1:] ^ total[0]).astype("<u8").tobytes())
            packed = total[0].astype("<u8").view(np.uint8)
            bits.append(np.unpackbits(packed, bitorder="little").astype(np.uint64))
            blocks.append(_rows(weighted))
        return b"".join(sent), bits, blocks


class Sender:
    """The end that owns Δ, uint64[2]. keys: the chosen key of every base OT, where it received;
    message: the chooser's."""

    MESSAGE_BYTES = SECURITY * 2 * 16

    def __init__(self, delta: Words, keys: Words, message: bytes, field: Field) -> None:
        if len(message) != self.MESSAGE_BYTES:
            raise MalformedMessage(
                "bytes of the trees' sums", got=len(message), expected=self.MESSAGE_BYTES
            )
        self._field, self._trees, first = field, list[_Streams](), 0
        self._bits = bits_of(delta)
        sums = np.frombuffer(message, "<u8").astype(np.uint64).reshape(SECURITY, 2, 2)
        for depth in parts(field):
            levels = slice(first, first + depth)
            leaves, missing = _known(self._bits[levels], keys[levels], sums[levels])
            # Leaf x stands at x ⊕ (part of Δ): the missing one is number 0, which weighs nothing.
            self._trees.append(_Streams(leaves[np.arange(2**depth) ^ missing]))
            first += depth

    @staticmethod
    def choices(delta: Words, field: Field) -> Words:
        """Which key of every base OT the owner of Δ asks for: uint64[128]."""
        bits, first, made = bits_of(delta), 0, []
        for depth in parts(field):
            made.append(bits[first : first + depth][::-1])
            first += depth
        return np.uint64(1) ^ np.concatenate(made)

    def extend(self, count: int, message: bytes) -> list[Words]:
        """w: uint64[n, 2], in pieces of ``count`` in all. Raises MalformedMessage."""
        if len(message) != extension_bytes(count, self._field):
            expected = extension_bytes(count, self._field)
            raise MalformedMessage("bytes of an extension", got=len(message), expected=expected)
        whole, place, blocks = np.frombuffer(message, "<u8").astype(np.uint64), 0, []
        chosen = (np.uint64(0) - self._bits)[:, None]
        tree_of = np.repeat(np.arange(len(self._trees)), parts(self._field))
        own = parts(self._field)[0]
        for room in _rooms(count, self._field):
            _, weighted = _summed(self._trees, room, self._field)
            wide = weighted.shape[1]
            words = extension_bits(self._field) * wide
            change = whole[place : place + words].reshape(-1, wide)
            place += words
            weighted[own:] ^= chosen[own:] & change[tree_of[own:] - 1]
            blocks.append(_rows(weighted))
        return blocks


def _known(part: Words, keys: Words, sums: Words) -> tuple[Words, int]:
    """All leaves of a tree but one, in whose place are zeros, and its number. part: that number's
    bits, lowest first. keys: of every level, from the root on; sums: hidden under both."""
    nodes, path = np.zeros((1, 2), np.uint64), 0
    for level in range(len(part)):
        below = _children(nodes)
        below[path] = 0  # of the node that is not known
        turn = int(part[len(part) - 1 - level])
        side = 1 - turn
        known = sums[level, side] ^ keys[level]
        below[path, side] = known ^ np.bitwise_xor.reduce(below[:, side], axis=0)
        nodes, path = below.reshape(-1, 2), 2 * path + turn
    return nodes, path


def bits_of(block: Words) -> Words:
    """uint64[2] -> uint64[128] of 0 and 1, lowest first."""
    places = np.arange(64, dtype=np.uint64)
    return np.concatenate([half >> places & np.uint64(1) for half in block])
