"""The extension against a slow implementation of its definition, and its relations."""

from __future__ import annotations

import hashlib
import secrets
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_quant.errors import MalformedMessage
from secure_quant.onehost import softspoken
from secure_quant.onehost.base_ot import BaseReceiver, BaseSender
from secure_quant.onehost.softspoken import Chooser, Sender, bits_of, extension_bytes
from tests.unit.onehost.drive import whole

FIELDS = (4, 6, 8)
PARTS = {4: [4] * 32, 6: [6] * 21 + [2], 8: [8] * 16}
"""Bits of Δ of every tree."""


def ends(kappa: Any, delta: Any) -> tuple[Chooser, Sender]:
    receiver = BaseReceiver(b"d", Sender.choices(delta, kappa))
    base = BaseSender(b"d")
    chooser = Chooser(base.keys(receiver.message), kappa)
    return chooser, Sender(delta, receiver.keys(base.message), chooser.message, kappa)


def random_delta() -> Any:
    return np.frombuffer(secrets.token_bytes(16), np.uint64)


@pytest.mark.parametrize("kappa", FIELDS)
def test_every_cot_of_several_extensions(kappa: Any) -> None:
    delta = random_delta()
    chooser, sender = ends(kappa, delta)
    seen = []
    for count in (128, 8192 + 256, 0, 131072 + 128):
        message, u, v = whole(chooser.extend(count))
        assert len(message) == extension_bytes(count, kappa) == (-(-128 // kappa) - 1) * count // 8
        w = whole(sender.extend(count, message))
        assert (w == v ^ u[:, None] * delta).all()
        assert set(u.tolist()) <= {0, 1}
        seen.append(v)
    assert len(np.unique(np.concatenate(seen), axis=0)) == sum(map(len, seen))


def _aes(purpose: str, block: bytes) -> bytes:
    """π(x) ⊕ x."""
    key = hashlib.sha256(b"secure-quant one host: " + purpose.encode()).digest()[:16]
    made = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # noqa: S305
    return bytes(a ^ b for a, b in zip(made, block, strict=True))


def _leaves(root: bytes, depth: int) -> list[bytes]:
    nodes = [root]
    for _ in range(depth):
        nodes = [_aes(f"{side} child", node) for node in nodes for side in ("left", "right")]
    return nodes


def _stream(leaf: bytes, count: int) -> int:
    counter = modes.CTR((2).to_bytes(16, "big"))
    made = Cipher(algorithms.AES(leaf), counter).encryptor().update(bytes(count // 8))
    return int.from_bytes(made, "little")


@pytest.mark.parametrize("kappa", FIELDS)
def test_against_a_slow_implementation(kappa: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """u, v and the message from the roots, w from the streams of all leaves, by sums over F_2^κ."""
    depths = PARTS[kappa]
    roots = [secrets.token_bytes(16) for _ in depths]
    left = iter(roots)
    drawn = SimpleNamespace(token_bytes=lambda size: next(left)[:size])
    monkeypatch.setattr(softspoken, "secrets", drawn)
    delta, count = random_delta(), 256
    chooser, sender = ends(kappa, delta)
    message, u, v = whole(chooser.extend(count))
    w = whole(sender.extend(count, message))

    ones, rows, seen, total = (
        [],
        [0] * count,
        [0] * count,
        int.from_bytes(delta.tobytes(), "little"),
    )
    for g, depth in enumerate(depths):
        first = g * kappa
        part = (total >> first) % 2**depth
        leaves = _leaves(roots[g], depth)
        streams = [_stream(leaf, count) for leaf in leaves]
        one = 0
        for x, stream in enumerate(streams):
            one ^= stream
            for i in range(count):
                if stream >> i & 1:
                    rows[i] ^= x << first
                    seen[i] ^= (x ^ part) << first
        ones.append(one)
        if g:
            change = (one ^ ones[0]).to_bytes(count // 8, "little")
            assert message[(g - 1) * count // 8 : g * count // 8] == change
            for i in range(count):
                if (one ^ ones[0]) >> i & 1:
                    seen[i] ^= part << first
    assert [ones[0] >> i & 1 for i in range(count)] == u.tolist()
    assert [int.from_bytes(row.tobytes(), "little") for row in v] == rows
    assert [int.from_bytes(row.tobytes(), "little") for row in w] == seen


@pytest.mark.parametrize("kappa", FIELDS)
def test_the_sender_misses_one_leaf_of_each_tree(kappa: Any) -> None:
    _, sender = ends(kappa, random_delta())
    unknown = [[stream is None for stream in tree._streams] for tree in sender._trees]
    assert [len(tree) for tree in unknown] == [2**depth for depth in PARTS[kappa]]
    assert [tree.index(True) for tree in unknown] == [0] * len(unknown)
    assert [sum(tree) for tree in unknown] == [1] * len(unknown)


def test_a_wrong_delta_or_message_breaks_the_relation() -> None:
    """The relation is not one that holds of itself."""
    delta = random_delta()
    chooser, sender = ends(4, delta)
    message, u, v = whole(chooser.extend(128))
    flipped = bytes([message[0] ^ 1]) + message[1:]
    w = whole(sender.extend(128, flipped))
    # Column 1 of the parts took a wrong correction in its first place.
    off = (w ^ v ^ u[:, None] * delta).any(axis=1)
    part = int(delta[0] >> np.uint64(4)) & 15
    assert off.tolist() == [part != 0] + [False] * 127


def test_lengths_are_checked() -> None:
    delta = random_delta()
    chooser, sender = ends(4, delta)
    message, _, _ = whole(chooser.extend(128))
    for bad in (message[:-1], message + b"x", b""):
        with pytest.raises(MalformedMessage):
            whole(sender.extend(128, bad))
    with pytest.raises(MalformedMessage):
        Sender(delta, np.zeros((128, 2), np.uint64), chooser.message[:-1], 4)


@pytest.mark.parametrize("kappa", FIELDS)
def test_bits_and_blocks_look_random(kappa: Any) -> None:
    """Counts of ones, and of equal bits between what each end holds, within 6.5 deviations."""
    delta, count = random_delta(), 2**15
    chooser, sender = ends(kappa, delta)
    message, u, v = whole(chooser.extend(count))
    w = whole(sender.extend(count, message))
    spread = 6.5 * np.sqrt(count) / 2
    sent = np.unpackbits(np.frombuffer(message, np.uint8), bitorder="little").reshape(-1, count)
    for column in (u, *[np.array(c) for c in sent]):
        assert abs(int(column.sum()) - count / 2) < spread
    for row in sent:  # what the sender sees tells nothing of u
        assert abs(int((row.astype(np.uint64) ^ u).sum()) - count / 2) < spread
    for blocks in (v, w):
        for half in range(2):
            for bit in range(0, 64, 7):
                column = blocks[:, half] >> np.uint64(bit) & np.uint64(1)
                assert abs(int(column.sum()) - count / 2) < spread
                assert abs(int((column ^ u).sum()) - count / 2) < spread


def test_bits_of() -> None:
    block = random_delta()
    value = int.from_bytes(block.astype("<u8").tobytes(), "little")
    assert bits_of(block).tolist() == [value >> i & 1 for i in range(128)]
