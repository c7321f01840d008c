"""SoftSpokenOT: correlated OTs from 128 base OTs, semi-honest, over the field of 2^κ elements.

For each of 128/κ parts of the sender's Δ the chooser owns a tree of 2^κ seeds; the sender holds
every leaf but the one whose number is that part of Δ, through κ base OTs on the sums of left and
of right nodes of each level. The leaves' streams give the chooser u (its random choice bits) and
v, the sender w, with

    w = v ⊕ u·Δ        128 bits each, for every COT.

The chooser sends 128/κ - 1 bits a COT, and nothing comes back. Semi-honest is all that is claimed:
with these base OTs a consistency check would give no assurance.

Source: L. Roy, "SoftSpokenOT: quieter OT extension from small-field silent VOLE in the Minicrypt
model", CRYPTO 2022.
"""

from __future__ import annotations

import secrets
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from secure_quant.errors import MalformedMessage
from secure_quant.onehost import kernels
from secure_quant.onehost.permutation import CHILDREN, Words

__all__ = ["GRAIN", "SECURITY", "Chooser", "Field", "Sender", "extension_bytes"]

Field = Literal[4, 8]
"""κ: 4 is faster, 8 sends half as much."""

SECURITY = 128
GRAIN = 128
"""COTs come in multiples of this: a block of every leaf's stream."""
_CHUNK = {4: 2**16, 8: 2**13}
"""COTs that are made at once, so that streams stay in the cache."""


def extension_bytes(count: int, field: Field) -> int:
    """What a chooser sends for ``count`` COTs, a multiple of GRAIN."""
    return (SECURITY // field - 1) * count // 8


def _children(nodes: Words) -> Words:
    """[trees, n, 2] -> [trees, n, 2 sides, 2]: the seeds below each."""
    return np.stack([child.hash(nodes) for child in CHILDREN], axis=2)


class _Streams:
    """AES-128 in counter mode under every leaf. Not safe to share between threads."""

    def __init__(self, leaves: Words) -> None:
        """leaves: uint64[trees, 2^κ, 2]; one of zeros in place 0 is unknown and gives zeros."""
        self._shape = leaves.shape[:2]
        seeds = leaves.astype("<u8").reshape(-1, 2)
        self._streams: list[CipherContext | None] = [
            Cipher(algorithms.AES(seed.tobytes()), modes.CTR(bytes(16))).encryptor()
            if seed.any() else None
            for seed in seeds
        ]  # fmt: skip

    def read(self, count: int) -> Words:
        """The next ``count`` bits of all, uint64[trees, 2^κ, count / 64]."""
        zeros = bytes(count // 8)
        made = b"".join(
            zeros if stream is None else stream.update(zeros) for stream in self._streams
        )
        read_only = np.frombuffer(made, "<u8").astype(np.uint64)
        return read_only.reshape(*self._shape, count // 64)


def _chunks(count: int, field: Field) -> list[int]:
    if count % GRAIN:
        raise ValueError(f"COTs come in multiples of {GRAIN}")
    whole, rest = divmod(count, _CHUNK[field])
    return [_CHUNK[field]] * whole + ([rest] if rest else [])


def _summed(streams: Words, field: Field) -> tuple[Words, Words]:
    """(sums of the trees' leaves, weighted sums by bit): [trees, words], [128, words]."""
    trees, words = streams.shape[0], streams.shape[2]
    total, weighted = np.empty((trees, words), np.uint64), np.empty((SECURITY, words), np.uint64)
    kernels.fold(streams, total, weighted)
    return total, weighted


def _rows(columns: Words) -> Words:
    made = np.empty((64 * columns.shape[1], 2), np.uint64)
    kernels.transpose(columns, made)
    return made


class Chooser:
    """The end that gets random choice bits. keys: both keys of every base OT, where it sends."""

    def __init__(self, keys: Words, field: Field) -> None:
        self._field = field
        trees = SECURITY // field
        nodes = np.frombuffer(secrets.token_bytes(16 * trees), np.uint64).reshape(trees, 1, 2)
        sums = []
        for _ in range(field):
            below = _children(nodes)
            sums.append(np.bitwise_xor.reduce(below, axis=1))  # [trees, 2 sides, 2]
            nodes = below.reshape(trees, -1, 2)
        hidden = np.stack(sums, axis=1).reshape(SECURITY, 2, 2) ^ keys
        self.message = hidden.astype("<u8").tobytes()
        """For the sender: the sums of every level, each under its key."""
        self._streams = _Streams(nodes)

    def extend(self, count: int) -> tuple[bytes, Words, Words]:
        """(message, u: uint64[count] of 0 and 1, v: uint64[count, 2])."""
        sent, bits, blocks = [], [], []
        for size in _chunks(count, self._field):
            total, weighted = _summed(self._streams.read(size), self._field)
            sent.append((total[1:] ^ total[0]).astype("<u8").tobytes())
            packed = total[0].astype("<u8").view(np.uint8)
            bits.append(np.unpackbits(packed, bitorder="little").astype(np.uint64))
            blocks.append(_rows(weighted))
        return b"".join(sent), _joined(bits, (0,)), _joined(blocks, (0, 2))


class Sender:
    """The end that owns Δ, uint64[2]. keys: the chosen key of every base OT, where it received;
    message: the chooser's."""

    MESSAGE_BYTES = SECURITY * 2 * 16

    def __init__(self, delta: Words, keys: Words, message: bytes, field: Field) -> None:
        if len(message) != self.MESSAGE_BYTES:
            raise MalformedMessage(
                "bytes of the trees' sums", got=len(message), expected=self.MESSAGE_BYTES
            )
        self._field, trees = field, SECURITY // field
        self._bits = bits_of(delta)
        parts = self._bits.reshape(trees, field)
        sums = np.frombuffer(message, "<u8").astype(np.uint64).reshape(trees, field, 2, 2)
        opened = keys.reshape(trees, field, 2)
        every = np.arange(trees)
        nodes, path = np.zeros((trees, 1, 2), np.uint64), np.zeros(trees, np.int64)
        for level in range(field):
            below = _children(nodes)
            below[every, path] = 0  # of the node that is not known
            turn = parts[:, field - 1 - level].astype(np.int64)
            side = 1 - turn
            known = sums[every, level, side] ^ opened[:, level]
            known ^= np.bitwise_xor.reduce(below[every, :, side], axis=1)
            below[every, path, side] = known
            nodes, path = below.reshape(trees, -1, 2), 2 * path + turn
        # Leaf x stands at x ⊕ (part of Δ): the missing one is number 0, which weighs nothing.
        places = np.arange(2**field) ^ path[:, None]
        self._streams = _Streams(np.take_along_axis(nodes, places[:, :, None], axis=1))

    @staticmethod
    def choices(delta: Words, field: Field) -> Words:
        """Which key of every base OT the owner of Δ asks for: uint64[128]."""
        parts = bits_of(delta).reshape(-1, field)
        return np.uint64(1) ^ np.ascontiguousarray(parts[:, ::-1]).reshape(-1)

    def extend(self, count: int, message: bytes) -> Words:
        """w: uint64[count, 2]. Raises MalformedMessage."""
        if len(message) != extension_bytes(count, self._field):
            expected = extension_bytes(count, self._field)
            raise MalformedMessage("bytes of an extension", got=len(message), expected=expected)
        whole, place, blocks = np.frombuffer(message, "<u8").astype(np.uint64), 0, []
        trees = SECURITY // self._field
        chosen = (np.uint64(0) - self._bits).reshape(trees, self._field, 1)
        for size in _chunks(count, self._field):
            _, weighted = _summed(self._streams.read(size), self._field)
            words = (trees - 1) * size // 64
            change = whole[place : place + words].reshape(trees - 1, 1, -1)
            place += words
            columns = weighted.reshape(trees, self._field, -1)
            columns[1:] ^= chosen[1:] & change
            blocks.append(_rows(weighted))
        return _joined(blocks, (0, 2))


def bits_of(block: Words) -> Words:
    """uint64[2] -> uint64[128] of 0 and 1, lowest first."""
    places = np.arange(64, dtype=np.uint64)
    return np.concatenate([half >> places & np.uint64(1) for half in block])


def _joined(parts: list[Words], empty: tuple[int, ...]) -> Words:
    return np.concatenate(parts) if parts else np.empty(empty, np.uint64)
