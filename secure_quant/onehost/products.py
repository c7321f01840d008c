"""Products of shared bits, by correlated OTs. Every message is one-time padded by a key that its
receiver lacks; ``docs/spec/one-host.md`` proves them one by one.

Values of more than 64 bits are uint64[n, ceil(bits / 64)], lowest word first and zero above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secure_quant.errors import MalformedMessage
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.ring import reduce
from secure_quant.onehost import kernels
from secure_quant.onehost.cot import BOTH, Column, clipped
from secure_quant.onehost.exchange import Joint, swap, together
from secure_quant.onehost.permutation import Words

__all__ = [
    "column_times", "end_to_end", "gated", "number", "open_sum", "opened_bits", "packed", "scaled",
    "unpacked",
]  # fmt: skip


def packed(values: Words, bits: int) -> bytes:
    """uint64[n, ceil(bits / 64)] end to end, filled up to a byte."""
    count = len(values)
    whole = _empty(count, bits)
    kernels.join(np.ascontiguousarray(values), bits, whole)
    return _sent(whole, count, bits)


def unpacked(message: bytes, count: int, bits: int) -> Words:
    """The reverse. Raises MalformedMessage."""
    whole = _heard(message, count, bits)
    made = np.empty((count, -(-bits // 64)), np.uint64)
    kernels.cut(whole, bits, made)
    return made


def _empty(count: int, bits: int) -> Words:
    return np.zeros((count * bits + 63) // 64, np.uint64)


def _sent(whole: Words, count: int, bits: int) -> bytes:
    octets = whole.astype("<u8", copy=False).view(np.uint8)
    return octets[: packed_bytes(count, bits)].tobytes()


def _heard(message: bytes, count: int, bits: int) -> Words:
    """As words, the last filled up with zeros. Raises MalformedMessage."""
    if len(message) != packed_bytes(count, bits):
        expected = packed_bytes(count, bits)
        raise MalformedMessage("bytes of a product", got=len(message), expected=expected)
    whole = np.zeros(max((count * bits + 63) // 64, 1), np.uint64)
    whole.view(np.uint8)[: len(message)] = np.frombuffer(message, np.uint8)
    return whole.view("<u8").astype(np.uint64, copy=False)


def opened_bits(own: Words, bits: int) -> Joint[Words]:
    """The XOR of both parties' values."""
    size = packed_bytes(len(own), bits)
    peer = yield from swap(packed(own, bits), size)
    made: Words = own ^ unpacked(peer, len(own), bits)
    return made


def open_sum(own: Words, bits: int) -> Joint[Words]:
    """The sum of both parties' uint64[n] mod 2^bits."""
    values = reduce(own, bits)
    size = packed_bytes(len(own), bits)
    peer = yield from swap(packed(values[:, None], bits), size)
    return reduce(values + unpacked(peer, len(own), bits)[:, 0], bits)


def gated(column: Column, own: Words, bits: int) -> Joint[Words]:
    """P1: this party's share (XOR) of b·v, of both parties' shares ``own`` of v; column of BOTH.

    m = pad(K_0) ⊕ pad(K_1) ⊕ v_own goes to the peer, which reads pad(K_0) ⊕ b·v_own of it.
    """
    pads, count, own = column.take(bits), len(own), np.ascontiguousarray(own)
    kept, whole = np.empty((count, -(-bits // 64)), np.uint64), _empty(count, bits)
    kernels.hide(*pads.sender(), own, bits, whole, kept)
    peer = yield from swap(_sent(whole, count, bits), packed_bytes(count, bits))
    kernels.open_hidden(_heard(peer, count, bits), bits, pads.chooser(), column.own, own, kept)
    return kept


def scaled(column: Column, choosing: bool, x: Words | None, bits: int) -> Joint[Words]:
    """P2: this party's share mod 2^bits of b_c·x, for the bit b_c of the party that chooses and
    the other's x, uint64[n]; only the other sends: pad(K_0) - pad(K_1) + x."""
    pads, count = column.take(bits), len(column.own)
    made = np.empty(count, np.uint64)
    if choosing:
        peer = yield from swap(b"", packed_bytes(count, bits))
        kernels.open_number(_heard(peer, count, bits), bits, pads.chooser(), column.own, made)
        return made
    if x is None:
        raise ValueError("the party that does not choose has the factor")
    whole = _empty(count, bits)
    kernels.hide_number(*pads.sender(), x, bits, whole, made)
    yield from swap(_sent(whole, count, bits), 0)
    return made


def column_times(column: Column, own: Words, bits: int, party: int) -> Joint[Words]:
    """P3: this party's share mod 2^bits of b·v, of both parties' shares ``own`` of v, uint64[n].

    (b_0 ⊕ b_1)·v_s = b_s·v_s + b_peer·(1 - 2·b_s)·v_s: P2 in both directions.
    """
    turned = own - np.uint64(2) * column.own * own
    runs = [scaled(column, chooser == party, turned, bits) for chooser in (0, 1)]
    first, second = yield from together(runs)
    return reduce(column.own * own + first + second, bits)


def number(
    columns: Sequence[Column], choosers: Sequence[int], bits: int, party: int
) -> Joint[list[Words]]:
    """B2A: this party's shares of every bit, that of columns[i] mod 2^(bits - i), uint64[n] each.

    a ⊕ b = a + b - 2·a·b, so a·b is needed mod 2^(bits - 1 - i). choosers: 0 or 1, or BOTH where
    either may; then they take turns.
    """
    runs, places = [], []
    for i, (column, chooser) in enumerate(zip(columns, choosers, strict=True)):
        if bits - 1 - i > 0:
            side = chooser if chooser != BOTH else i % 2
            runs.append(scaled(column, side == party, column.own, bits - 1 - i))
            places.append(i)
    made = yield from together(runs)
    shares = [column.own for column in columns]
    for i, both in zip(places, made, strict=True):
        shares[i] = reduce(columns[i].own - np.uint64(2) * both, bits - i)
    return shares


def weighed(shares: Sequence[Words], bits: int) -> Words:
    """Σ 2^i · shares[i] mod 2^bits."""
    total = np.zeros_like(shares[0])
    for i, share in enumerate(shares[:bits]):
        total += share << np.uint64(i)
    return reduce(total, bits)


def cut_bits(values: Words, first: int, bits: int) -> Words:
    """Bits first .. first + bits - 1 of uint64[n, words]: uint64[n, ceil(bits / 64)]."""
    w, s = divmod(first, 64)
    count = -(-bits // 64)
    padded = np.zeros((len(values), w + count + 1), np.uint64)
    padded[:, : values.shape[1]] = values[:, : w + count + 1]
    made = padded[:, w : w + count] >> np.uint64(s)
    if s:
        made |= padded[:, w + 1 : w + count + 1] << np.uint64(64 - s)
    return clipped(made, bits)


def end_to_end(parts: Sequence[Words], axis: int = 0) -> Words:
    """Elements one after the other; a copy unless there is but one part."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def joined_bits(parts: Sequence[tuple[Words, int]], count: int) -> Words:
    """(uint64[n] or uint64[n, words], bits) end to end in every element, n = count."""
    words = -(-sum(bits for _, bits in parts) // 64)
    made = [np.zeros(count, np.uint64) for _ in range(words)]
    place = 0
    for values, bits in parts:
        wide = values[:, None] if values.ndim == 1 else values
        for v in range(-(-bits // 64)):
            w, s = divmod(place + 64 * v, 64)
            made[w] |= wide[:, v] << np.uint64(s)
            if s + min(bits - 64 * v, 64) > 64:
                made[w + 1] |= wide[:, v] >> np.uint64(64 - s)
        place += bits
    return np.stack(made, axis=1) if words else np.empty((count, 0), np.uint64)
