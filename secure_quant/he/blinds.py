"""The input-independent half of responses: what hides weights, made ahead of demand."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from secure_quant.he.parameters import Parameters
from secure_quant.he.ring import Ring
from secure_quant.he.sampling import Sampler, fresh
from secure_quant.he.wire import Call

__all__ = ["Blind", "blind_size"]

U64 = NDArray[np.uint64]


@dataclass(frozen=True, repr=False)
class Blind:
    """The input-independent half of some responses; used once.

    u: transformed, uint64[responses, primes, degree]. c1: errors of the same shape. c0: errors and
    flood, per wanted coefficient [responses, ...] with one prime, and of that shape with two.
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
    """Residues [count, 2, degree] of A + p·B with A uniform below the dropped prime p and B in
    [-bound, bound): uniform over an interval of 2·p·bound integers."""
    q, p = parameters.primes
    low = stream.residues(shape[0] * shape[1], p).reshape(shape)
    high = stream.flood(shape, bound)
    # p·high modulo 2^64, less as many q as a quotient of 53 bits says: 24 too many or too few at
    # most, as q < 2^56.
    factor, reduced = p % q, high % q
    quotient = np.rint(reduced * (factor / q)).astype(np.int64)
    near = reduced * np.int64(factor) - quotient * np.int64(q)
    return np.stack([((near + low.view(np.int64)) % np.int64(q)).view(np.uint64), low], 1)
