"""The input-independent half of responses: what hides weights, made ahead of demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from secure_quant.he.parameters import Parameters
from secure_quant.he.products import multiplied
from secure_quant.he.ring import Ring
from secure_quant.he.sampling import Sampler, fresh
from secure_quant.he.wire import Call

__all__ = ["Blind", "blind_size"]

U64 = NDArray[np.uint64]
Int = NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Blind:
    """The input-independent half of some responses; used once.

    u: transformed, uint64[responses, primes, degree]. c1: errors of the same shape. c0: errors and
    flood, per wanted coefficient [responses, ...] with one prime, and of that shape with several.
    """

    u: U64
    c0: U64
    c1: U64

    @classmethod
    def fresh(cls, call: Call, field: Ring, count: int) -> Blind:
        """For ``count`` responses."""
        stream, degree, flood = fresh(), field.degree, call.scaling.flood
        u = field.residues(stream.ternary((count, degree)))
        field.forward(u)
        c1 = field.residues(stream.errors((count, degree)))
        if len(field.primes) == 1:
            shape = (count, *call.packing.wanted_shape)
            c0 = field.residues(stream.errors(shape) + stream.flood(shape, flood))[..., 0, :]
        else:
            errors = field.residues(stream.errors((count, degree)))
            c0 = field.add(errors, _wide_flood(stream, (count, degree), flood, call.ring))
        return cls(u, c0, c1)

    def shifted(self, call: Call, field: Ring, hidden: U64) -> Blind:
        """With ``hidden`` subtracted from the wanted coefficients of c0."""
        moduli = field.moduli.reshape(-1, 1, 1, 1, 1)
        change = np.where(hidden == 0, hidden, moduli - hidden)
        if len(field.primes) == 1:
            return Blind(self.u, field.add(self.c0, change[:, 0]), self.c1)
        whole = np.zeros_like(self.c0)
        for i in range(len(field.primes)):
            call.packing.wanted(whole[:, i])[...] = change[:, i]
        return Blind(self.u, field.add(self.c0, whole), self.c1)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.u.nbytes + self.c0.nbytes + self.c1.nbytes


def blind_size(call: Call) -> int:
    """Bytes of all blinds of one call."""
    whole = call.ring.degree * len(call.ring.primes)
    c0 = prod(call.packing.wanted_shape) if len(call.ring.primes) == 1 else whole
    return 8 * call.ciphertexts_down * (2 * whole + c0)


def _wide_flood(stream: Sampler, shape: tuple[int, int], bound: int, parameters: Parameters) -> U64:
    """Residues [count, primes, degree] of A + P·B with A uniform below the product P of the dropped
    primes and B in [-bound, bound): uniform over an interval of 2·P·bound integers. A's digits are
    uniform below one dropped prime after the other: a_1 + p_1·a_2."""
    q, *dropped = parameters.primes
    count = shape[0] * shape[1]
    digits = [stream.residues(count, p).reshape(shape).view(np.int64) for p in dropped]
    digits.append(stream.flood(shape, bound))
    kept = [_number(digits, dropped, q)]
    for i, prime in enumerate(dropped):  # what comes after digit i weighs 0 there
        kept.append(_number(digits[: i + 1], dropped, prime))
    return np.stack(kept, 1)


def _number(digits: Sequence[Int], radices: Sequence[int], prime: int) -> U64:
    """Σ digit·(product of the radices before it) modulo ``prime``: digits below 2**60, but the
    last. One digit is below the prime; for several it is below 2**56."""
    total = digits[0]
    for i, digit in enumerate(digits[1:], 1):
        total = multiplied(digit, prod(radices[:i]), prime, total)
    return total.view(np.uint64)
