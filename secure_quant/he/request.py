"""A request as it is read: ciphertexts, and the public key that answers are blinded with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_quant.he.products import Factors
from secure_quant.he.ring import Ring
from secure_quant.he.sampling import Uniform
from secure_quant.he.wire import Call

__all__ = ["Request"]

U64 = NDArray[np.uint64]


class Request:
    """Ciphertexts in the order of the cells that use them.

    key: the public key, transformed, [1, 2, ...]. Raises MalformedMessage as it is made and as it
    is read.
    """

    def __init__(self, call: Call, field: Ring, data: memoryview) -> None:
        self._field, self._packing = field, call.packing
        self._reader = call.read_request(data)
        self._uniform = Uniform(self._reader.seed, field.primes, field.degree)
        key = np.zeros((1, len(field.primes), field.degree), np.uint64)
        # With several primes the key is a multiple of all but the first: zeros are its residues.
        key[0, 0] = self._reader.key()
        self.key = self._pairs(key)

    def transformed(self, count: int) -> Factors:
        """The next ``count`` ciphertexts: [count, 2, ...]."""
        return self._pairs(self._packing.unite(*self._reader.take(count)))

    def coefficients(self, count: int) -> tuple[U64, U64]:
        """c0 and c1 of the next ``count`` ciphertexts, uint64[count, degree] each; one prime."""
        c0 = self._packing.unite(*self._reader.take(count))
        c1 = self._uniform.polynomials(len(c0))
        self._field.inverse(c1)
        return c0[:, 0], c1[:, 0]

    def _pairs(self, c0: U64) -> Factors:
        """Transformed, with c1 expanded from the seed."""
        self._field.forward(c0)
        both = np.stack([c0, self._uniform.polynomials(len(c0))], axis=1)
        return self._field.products.factors(both)
