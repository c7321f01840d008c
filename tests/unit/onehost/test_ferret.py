"""Ferret against a slow implementation of its definition, an ideal COT, and its own promises."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_quant.errors import MalformedMessage
from secure_quant.onehost.ferret import LPN, MARK, Chooser, Lpn, Sender, choice_bits
from secure_quant.onehost.permutation import Words
from tests.unit.onehost.drive import SMALL, whole

LOW = 2**64 - 1


def ideal(lpn: Lpn) -> tuple[Words, Words, Words, Words]:
    """(Δ, u, v, w) of as many COTs as a first batch takes."""
    delta, rng = np.frombuffer(secrets.token_bytes(16), np.uint64) | MARK, np.random.default_rng()
    u = rng.integers(0, 2, lpn.reserve, dtype=np.uint64)
    v = rng.integers(0, 2**64, (lpn.reserve, 2), dtype=np.uint64)
    return delta, u, v, v ^ u[:, None] * delta


def ends(lpn: Lpn) -> tuple[Chooser, Sender, Words]:
    delta, u, v, w = ideal(lpn)
    code = secrets.token_bytes(32)
    return Chooser(lpn, code, u, v), Sender(lpn, code, delta, w), delta


@pytest.mark.parametrize(("lpn", "batches"), [(SMALL, (1, 3, 0, 2)), (LPN, (1,))])
def test_every_cot_of_several_extensions(lpn: Lpn, batches: tuple[int, ...]) -> None:
    chooser, sender, delta = ends(lpn)
    seen = []
    for count in batches:
        message, w = whole(sender.extend(count))
        v = whole(chooser.extend(count, message))
        assert len(message) == count * lpn.trees * (lpn.depth - 1) * 16
        assert len(v) == count * lpn.made
        u = choice_bits(v)
        assert (w == v ^ u[:, None] * delta).all()
        assert not (w[:, 0] & MARK).any()
        assert abs(u.sum() - len(u) / 2) <= 6.5 * np.sqrt(len(u)) / 2
        seen.append(v)
    upper = np.concatenate(seen)[:, 1]
    assert len(np.unique(upper)) == len(upper) == sum(batches) * lpn.made


def test_what_is_put_aside_is_never_given_away() -> None:
    """The secret of the next batch and its trees' COTs: each once, and no COT of the stock."""
    _, sender, _ = ends(SMALL)
    blocks = [sender._base]
    for _ in range(4):
        blocks += [whole(sender.extend(1))[1].copy(), sender._base]
        assert len(sender._base) == SMALL.reserve
    every = np.concatenate(blocks)
    assert len(np.unique(every, axis=0)) == len(every) == 5 * SMALL.reserve + 4 * SMALL.made


def _hashed(block: int) -> int:
    """π(σ(x)) ⊕ σ(x)."""
    turned = (block ^ block >> 64) & LOW | (block & LOW) << 64
    key = hashlib.sha256(b"secure-quant one host: ferret").digest()[:16]
    cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - a permutation
    made = cipher.encryptor().update(turned.to_bytes(16, "little"))
    return int.from_bytes(made, "little") ^ turned


class Slow:
    """The sender's end with integers of Python, one node and one row after the other."""

    def __init__(self, lpn: Lpn, code: bytes, delta: int, w: list[int]) -> None:
        self.lpn, self.delta = lpn, delta
        self.base = [each & ~2 for each in w]
        self.rows = Cipher(algorithms.AES(code), modes.CTR(bytes(16))).encryptor()

    def tree(self, cots: list[int]) -> tuple[list[int], list[int]]:
        nodes, sent = [cots[0], cots[0] ^ self.delta], []
        for cot in cots[1:]:
            left = [_hashed(x) for x in nodes]
            right = [x ^ y for x, y in zip(nodes, left, strict=True)]
            for each in left:
                cot ^= each
            nodes = left + right
            sent.append(cot)
        total = 0
        for node in nodes:
            total ^= node
        assert total == self.delta
        return [node & ~2 for node in nodes], sent

    def extend(self) -> tuple[bytes, list[int]]:
        secret, cots = self.base[: self.lpn.secret], self.base[self.lpn.secret :]
        made: list[int] = []
        sent: list[int] = []
        for t in range(self.lpn.trees):
            leaves, sums = self.tree(cots[t * self.lpn.depth : (t + 1) * self.lpn.depth])
            made += leaves
            sent += sums
        for i in range(len(made)):
            row = self.rows.update(bytes(40))
            for j in range(10):
                number = int.from_bytes(row[4 * j : 4 * j + 4], "little")
                made[i] ^= secret[number * len(secret) >> 32]
        self.base = made[: self.lpn.reserve]
        return b"".join(x.to_bytes(16, "little") for x in sent), made[self.lpn.reserve :]


def integers(blocks: Words) -> list[int]:
    return [int(low) | int(high) << 64 for low, high in blocks]


def test_against_a_slow_implementation() -> None:
    lpn = Lpn(secret=96, trees=70, depth=3)
    delta, u, v, w = ideal(lpn)
    code = secrets.token_bytes(32)
    chooser, sender = Chooser(lpn, code, u, v), Sender(lpn, code, delta, w)
    slow = Slow(lpn, code, integers(delta[None])[0], integers(w))
    for _ in range(3):
        message, fast = whole(sender.extend(1))
        expected, blocks = slow.extend()
        assert message == expected
        assert integers(fast) == blocks
        own = whole(chooser.extend(1, message))
        assert integers(own ^ choice_bits(own)[:, None] * delta) == blocks


def test_choice_bits_are_a_sample_of_lpn() -> None:
    """u - A·s has one 1 in each block, at the place that the trees' bits name."""
    lpn = Lpn(secret=96, trees=70, depth=3)
    _, u, v, _ = ideal(lpn)
    code = secrets.token_bytes(32)
    chooser = Chooser(lpn, code, u, v)
    other = Slow(lpn, code, 0, [])
    leaves = chooser._grown(chooser._levels(), np.zeros((70, 2, 2), np.uint64))
    noise = choice_bits(leaves).reshape(70, 8)
    assert (noise.sum(axis=1) == 1).all()
    bits = 1 - u[96:].reshape(70, 3)
    assert (noise.argmax(axis=1) == (bits << np.arange(3, dtype=np.uint64)).sum(axis=1)).all()
    got = choice_bits(chooser._mixed(leaves.copy()))
    for i in range(lpn.samples):
        row, made = other.rows.update(bytes(40)), int(noise.ravel()[i])
        for j in range(10):
            made ^= int(u[int.from_bytes(row[4 * j : 4 * j + 4], "little") * 96 >> 32])
        if i >= lpn.reserve:
            assert made == got[i - lpn.reserve]


def test_the_chooser_misses_a_leaf_of_each_tree() -> None:
    """All others it has as the sender does; in the place of that one it has it plus Δ."""
    chooser, sender, delta = ends(SMALL)
    theirs, sums = sender._grown(sender._levels())
    own = chooser._grown(chooser._levels(), sums)
    off = (own != theirs).any(axis=1)
    assert (off.reshape(SMALL.trees, -1).sum(axis=1) == 1).all()
    assert ((own ^ theirs)[off] == delta).all()


def test_a_wrong_message_breaks_the_relation() -> None:
    """The relation is not one that holds of itself."""
    chooser, sender, delta = ends(SMALL)
    message, w = whole(sender.extend(1))
    v = whole(chooser.extend(1, message[:-1] + bytes([message[-1] ^ 1])))
    assert (w != v ^ choice_bits(v)[:, None] * delta).any()


def test_two_matrices_never_share_rows() -> None:
    """The same base and another seed, or a batch later: other choice bits."""
    delta, _, _, w = ideal(SMALL)
    made = []
    for code in (bytes(32), bytes(32), bytes([1]) + bytes(31)):
        sender = Sender(SMALL, code, delta, w)
        made.append(whole(sender.extend(1))[1])
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any(axis=1).mean() > 0.99
    again = Sender(SMALL, bytes(32), delta, w)
    first = again._mixed(np.zeros((SMALL.samples, 2), np.uint64))
    again._base = w.copy()
    assert (first != again._mixed(np.zeros((SMALL.samples, 2), np.uint64))).any(axis=1).all()


def test_lengths_are_checked() -> None:
    chooser, sender, delta = ends(SMALL)
    message, _ = whole(sender.extend(1))
    for bad in (message[:-1], message + b"x", b""):
        with pytest.raises(MalformedMessage, match="extension"):
            whole(chooser.extend(1, bad))
    blocks: Any = np.zeros((SMALL.reserve, 2), np.uint64)
    with pytest.raises(ValueError, match="reserve"):
        Sender(SMALL, bytes(32), delta, blocks[1:])
    with pytest.raises(ValueError, match="bit 1"):
        Sender(SMALL, bytes(32), delta & ~MARK, blocks)


def test_blocks_look_random() -> None:
    """Ones of every bit but the marked one, and equal bits of neighbours, within 6.5 deviations."""
    chooser, sender, _ = ends(SMALL)
    message, w = whole(sender.extend(16))
    v = whole(chooser.extend(16, message))
    for blocks in (v, w):
        bits = np.unpackbits(blocks.view(np.uint8), axis=1, bitorder="little")
        bits = np.delete(bits, 1, axis=1)
        for seen in (bits, bits[1:] ^ bits[:-1]):
            limit = 6.5 * np.sqrt(len(seen)) / 2
            assert (abs(seen.sum(axis=0) - len(seen) / 2) < limit).all()
