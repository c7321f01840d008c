"""Base OTs: what receiver and sender hold, against a computation of one's own on the curve."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import numpy as np
import pytest

from secure_quant.errors import MalformedMessage
from secure_quant.onehost.base_ot import POINT_BYTES, BaseReceiver, BaseSender

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B


def _point(data: bytes) -> tuple[int, int]:
    """Decompress with Python's integers, p = 3 mod 4."""
    x = int.from_bytes(data[1:], "big")
    y = pow(x**3 - 3 * x + B, (P + 1) // 4, P)
    assert (y * y - (x**3 - 3 * x + B)) % P == 0
    return x, y if y % 2 == data[0] - 2 else P - y


def _times(n: int, point: Any) -> Any:
    made = None
    while n:
        if n & 1:
            made = _add(made, point)
        point, n = _add(point, point), n >> 1
    return made


def _add(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def test_the_receiver_gets_the_chosen_key_and_no_other() -> None:
    choices = np.array([secrets.randbelow(2) for _ in range(40)], np.uint64)
    receiver, sender = BaseReceiver(b"d", choices), BaseSender(b"d")
    assert len(receiver.message) == 2 * 40 * POINT_BYTES
    assert len(sender.message) == POINT_BYTES
    keys, got = sender.keys(receiver.message), receiver.keys(sender.message)
    rows = np.arange(40)
    assert (keys[rows, choices.astype(int)] == got).all()
    assert (keys[rows, 1 - choices.astype(int)] != got).any(axis=1).all()
    assert len(np.unique(keys.reshape(-1, 2), axis=0)) == 80


def test_keys_are_those_of_the_curve() -> None:
    """Both keys of an OT, by another implementation of P-256, from the sender's secret."""
    receiver, sender = BaseReceiver(b"d", np.array([0, 1], np.uint64)), BaseSender(b"d")
    secret = sender._secret.private_numbers().private_value
    keys = sender.keys(receiver.message)
    for number in range(2):
        for choice in range(2):
            place = (2 * number + choice) * POINT_BYTES
            point = receiver.message[place : place + POINT_BYTES]
            shared = _times(secret, _point(point))[0].to_bytes(32, "big")
            head = hashlib.sha256(b"secure-quant one host: base OT d").digest()
            whole = head + number.to_bytes(4, "big") + sender.message + point + shared
            assert (
                keys[number, choice].astype("<u8").tobytes() == hashlib.sha256(whole).digest()[:16]
            )


def test_directions_have_keys_of_their_own() -> None:
    choices = np.zeros(1, np.uint64)
    receiver, sender, other = BaseReceiver(b"a", choices), BaseSender(b"a"), BaseSender(b"b")
    other._secret, other.message = sender._secret, sender.message
    assert (sender.keys(receiver.message) != other.keys(receiver.message)).any()


def test_both_points_look_alike() -> None:
    """The place of the known logarithm does not show: signs and x are spread alike."""
    for choice in (0, 1):
        receiver = BaseReceiver(b"d", np.full(600, choice, np.uint64))
        points = np.frombuffer(receiver.message, np.uint8).reshape(600, 2, POINT_BYTES)
        for place in (0, 1):
            odd, high = points[:, place, 0] == 3, points[:, place, 1] >= 128
            assert set(points[:, place, 0]) == {2, 3}
            for ones in (odd, high):
                assert abs(ones.sum() - 300) < 6.5 * np.sqrt(600) / 2


@pytest.mark.parametrize("bad", [b"\x02" + b"\xff" * 32, b"\x05" + bytes(32), bytes(33)])
def test_bytes_that_are_no_point_are_refused(bad: bytes) -> None:
    receiver, sender = BaseReceiver(b"d", np.zeros(1, np.uint64)), BaseSender(b"d")
    with pytest.raises(MalformedMessage):
        receiver.keys(bad)
    with pytest.raises(MalformedMessage):
        sender.keys(bad + bad)
