"""Base OTs on P-256: 128 for each direction of a pairing, once.

For every OT the receiver sends two points, one whose logarithm it knows in the place of its choice
and a random one, drawn by x and sign, in the other. The sender has one ephemeral key; key c of an
OT is a hash of the Diffie-Hellman value with point c. P-256 has prime order, so both points are
uniform and the choice is hidden perfectly; the other key rests on CDH with the hash as a random
oracle. Semi-honest receivers only: one that knows both logarithms knows both keys.

Source: Bellare and Micali, "Non-interactive oblivious transfer", CRYPTO 1989, with the second point
sampled obliviously.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from secure_quant.errors import MalformedMessage
from secure_quant.onehost.permutation import Words

__all__ = ["POINT_BYTES", "BaseReceiver", "BaseSender"]

POINT_BYTES = 33
"""A compressed point."""

_CURVE = ec.SECP256R1()
_FIELD_BYTES = 32


def _encoded(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def _point(data: bytes) -> ec.EllipticCurvePublicKey:
    """Raises MalformedMessage for what is no point of the curve."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, data)
    except ValueError as error:
        raise MalformedMessage("a point of P-256", got="bytes that are none") from error


def _random_point() -> bytes:
    """A uniform point whose logarithm nobody knows."""
    while True:
        data = bytes([2 + secrets.randbelow(2)]) + secrets.token_bytes(_FIELD_BYTES)
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, data)
        except ValueError:
            continue  # no point has this x: half of all
        return data


def _key(label: bytes, number: int, ephemeral: bytes, point: bytes, shared: bytes) -> bytes:
    head = hashlib.sha256(b"secure-quant one host: base OT " + label).digest()
    whole = head + number.to_bytes(4, "big") + ephemeral + point + shared
    return hashlib.sha256(whole).digest()[:16]


class BaseReceiver:
    """choices: 0 or 1, one for each OT. label: the direction, public and the same at both ends."""

    def __init__(self, label: bytes, choices: Words) -> None:
        self._label, self._choices = label, choices.tolist()
        self._secrets = [ec.generate_private_key(_CURVE) for _ in self._choices]
        pairs = []
        for choice, secret in zip(self._choices, self._secrets, strict=True):
            own = _encoded(secret.public_key())
            pairs.append((own, _random_point()) if choice == 0 else (_random_point(), own))
        self._points = pairs
        self.message = b"".join(first + second for first, second in pairs)
        """Both points of every OT."""

    def keys(self, ephemeral: bytes) -> Words:
        """The chosen key of every OT, uint64[count, 2]. Raises MalformedMessage."""
        peer = _point(ephemeral)
        made = b"".join(
            _key(self._label, number, ephemeral, pair[choice], secret.exchange(ec.ECDH(), peer))
            for number, (choice, secret, pair) in enumerate(
                zip(self._choices, self._secrets, self._points, strict=True)
            )
        )
        return np.frombuffer(made, "<u8").astype(np.uint64).reshape(-1, 2)


class BaseSender:
    """message: the ephemeral public key."""

    def __init__(self, label: bytes) -> None:
        self._label, self._secret = label, ec.generate_private_key(_CURVE)
        self.message = _encoded(self._secret.public_key())

    def keys(self, points: bytes) -> Words:
        """Both keys of every OT, uint64[count, 2 choices, 2]. Raises MalformedMessage."""
        made = []
        for place in range(0, len(points), POINT_BYTES):
            point = points[place : place + POINT_BYTES]
            shared = self._secret.exchange(ec.ECDH(), _point(point))
            number = place // (2 * POINT_BYTES)
            made.append(_key(self._label, number, self.message, point, shared))
        return np.frombuffer(b"".join(made), "<u8").astype(np.uint64).reshape(-1, 2, 2)
