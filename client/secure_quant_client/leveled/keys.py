"""The client's half of leveled inference: one secret key for a session, its evaluation keys,
encryption and decryption.

What leaves this module is ``evaluation_keys`` and what ``encrypt`` returns: public by design. The
secret key has no way out. Answers are approximate, and their error depends on the key: who hands
decrypted values back to the server, in full precision, helps it to find the key (Li and
Micciancio, 2021).
"""

from __future__ import annotations

import os
import secrets
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.errors import ImplausibleAnswer
from secure_quant.he.leveled.model import check_input
from secure_quant.he.leveled.plan import LeveledPlan, padded
from secure_quant.he.leveled.slots import all_slots, from_slots
from secure_quant.he.leveled.wire import (
    key_records,
    pack_keys,
    pack_request,
    unpack_response,
)
from secure_quant.he.parameters import Parameters
from secure_quant.he.ring import ring
from secure_quant.he.sampling import Sampler, Uniform, fresh
from secure_quant.keystream import SEED_BYTES
from secure_quant_client.forks import forgotten_by_children, require_own

__all__ = ["LeveledKeys"]

U64 = NDArray[np.uint64]
Int = NDArray[np.int64]


class LeveledKeys:
    """A fresh secret key for one session. Not for use by several threads at once."""

    def __init__(self, plan: LeveledPlan) -> None:
        self.plan = plan
        self._process = os.getpid()
        self._random = fresh()
        self._rings = [ring(Parameters(plan.degree, (prime,))) for prime in plan.primes]
        secret = self._random.ternary((plan.degree,))
        self._secret = [
            field.plaintext(values[0])
            for field, values in zip(self._rings, self._transformed(secret[None]), strict=True)
        ]
        self._ternary = secret
        forgotten_by_children(self)

    def forget(self) -> None:
        """In a forked process: the key is the parent's, and so is its stream of randomness."""
        self._secret, self._ternary, self._random = [], np.zeros(0, np.int64), fresh()

    def evaluation_keys(self) -> bytes:
        """Relinearization, rotation and public keys, ``wire.key_bytes`` long: for the server, once
        a session. The former encrypt P·target in one residue per digit, P being the special prime;
        the public key, with which TenSEAL starts its sums, encrypts zero."""
        plan, random = self.plan, self._stream()
        records, digits, special = key_records(plan), len(plan.primes) - 1, plan.primes[-1]
        seed = secrets.token_bytes(SEED_BYTES)
        b = self._encryptions(seed, records, random)
        targets = np.stack([self._rotated(step) for step in plan.steps])
        for i, (field, prime) in enumerate(zip(self._rings[:-1], plan.primes[:-1], strict=True)):
            unit = special % prime if special % prime < prime // 2 else special % prime - prime
            shifted = np.concatenate([self._ternary[None], targets]) * unit
            target = _forward(field, shifted)
            # The relinearization key's target is the square of the secret.
            field.multiply(target[:1], self._secret[i])
            rows = slice(i, records - 1, digits)
            b[rows, i] = field.add(b[rows, i][:, None], target)[:, 0]
        return pack_keys(plan, seed, b)

    def encrypt(self, x: ArrayLike) -> list[bytes]:
        """float[batch, ...] -> a request per sample. Values beyond the input bound are clipped.

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange, ConfigError in a forked process.
        """
        values = check_input(self.plan.public, x)
        width, slots = padded(self.plan.public)[0], self.plan.degree // 2
        made = []
        for row in values:
            filled = np.zeros(width)
            filled[: len(row)] = row
            coefficients = from_slots(np.tile(filled, slots // width)) * self.plan.scale
            made.append(self._encrypt(np.rint(coefficients).astype(np.int64)))
        return made

    def decrypt(self, response: bytes) -> NDArray[np.float64]:
        """Response to one sample -> float64[out], within the plan's error bound of the reference.

        All slots hold copies of the outputs, each within the bound: a server that puts anything of
        the key into them disturbs one as it does not disturb another, unless it stays below the
        bound.

        Raises MalformedMessage for a wrong length or a residue out of range; ImplausibleAnswer for
        copies that disagree or outputs beyond what the plan has room for. Give the key up then.
        """
        require_own("leveled keys", self._process)
        plan, field = self.plan, self._rings[0]
        polynomials = unpack_response(plan, response)
        product = polynomials[1][None, None].copy()
        field.multiply(product, self._secret[0])
        message = field.add(product, polynomials[0])
        field.inverse(message)
        prime, raw = plan.primes[0], message[0, 0].astype(np.int64)
        centred = np.where(raw > prime // 2, raw - prime, raw)
        slots = all_slots(centred.astype(np.float64)) / plan.scale
        outputs = slots[: plan.outputs]
        apart = np.abs(slots - np.resize(outputs, len(slots))).max()
        if max(apart / 2, np.abs(outputs.imag).max()) > plan.error_bound:
            raise ImplausibleAnswer(
                "copies of the outputs", got="some that differ",
                expected=f"all within {plan.error_bound:.3g}", hint="a server deviates",
            )  # fmt: skip
        if np.abs(outputs.real).max() > plan.largest + plan.error_bound:
            expected = f"<= {plan.largest:.3g}"
            raise ImplausibleAnswer("outputs", got="one out of range", expected=expected)
        return np.ascontiguousarray(outputs.real)

    def _encrypt(self, message: Int) -> bytes:
        seed, random = secrets.token_bytes(SEED_BYTES), self._stream()
        primes = self.plan.primes[:-1]
        noisy = message + random.errors(message.shape)
        a = Uniform(seed, primes, self.plan.degree).polynomials(1)
        b = np.empty((len(primes), self.plan.degree), np.uint64)
        for i, field in enumerate(self._rings[:-1]):
            # A message may be larger than one prime, though not than all of them.
            residues = _forward(field, noisy[None] % primes[i])
            b[i] = self._masked(field, i, a[:, i : i + 1], residues)[0, 0]
        return pack_request(self.plan, seed, b)

    def _encryptions(self, seed: bytes, count: int, random: Sampler) -> U64:
        """b of encryptions of zero, uint64[count, primes, degree]."""
        made = Uniform(seed, self.plan.primes, self.plan.degree).polynomials(count)
        errors = random.errors((count, self.plan.degree))
        for i, field in enumerate(self._rings):
            made[:, i : i + 1] = self._masked(
                field, i, made[:, i : i + 1].copy(), _forward(field, errors)
            )
        return made

    def _masked(self, field: Any, i: int, a: U64, message: U64) -> U64:
        """message - a·secret, uint64[n, 1, degree]; ``a`` is overwritten."""
        product = np.ascontiguousarray(a)
        field.multiply(product, self._secret[i])
        negative = np.where(product == 0, product, field.moduli - product)
        masked: U64 = field.add(negative, message)
        return masked

    def _rotated(self, step: int) -> Int:
        """The secret under X -> X^g for the rotation by ``step``, int64[degree]."""
        degree = self.plan.degree
        element = pow(3, step % (degree // 2), 2 * degree)
        exponents = np.arange(degree) * element % (2 * degree)
        made = np.empty(degree, np.int64)
        made[exponents % degree] = np.where(exponents < degree, self._ternary, -self._ternary)
        return made

    def _transformed(self, values: Int) -> list[U64]:
        return [_forward(field, values)[0] for field in self._rings]

    def _stream(self) -> Sampler:
        require_own("leveled keys", self._process)
        return self._random


def _forward(field: Any, values: Int) -> U64:
    """int64[n, degree] below the prime in magnitude -> transformed uint64[n, 1, degree]."""
    made: U64 = np.ascontiguousarray(field.residues(values))
    field.forward(made)
    return made
