"""The secret key of one inference, in the forms that encrypting and decrypting need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.he.packing import Packing
from secure_quant.he.parameters import Parameters
from secure_quant.he.ring import ring
from secure_quant.he.wire import Call

__all__ = ["SecretKey"]

U64 = NDArray[np.uint64]
Int = NDArray[np.int64]

_FEW = 64
"""Wanted coefficients of a polynomial up to which they are summed up one by one."""


@dataclass(frozen=True, repr=False)
class SecretKey:
    """request, response: the secret as a SEAL factor in the ring of requests and of responses.
    turned: float64[2·degree - 1], s(X) and -s(X) behind each other, backwards."""

    parameters: Parameters
    request: Any
    response: Any
    turned: NDArray[np.float64]

    @classmethod
    def fresh(cls, parameters: Parameters) -> SecretKey:
        """A uniform ternary key, random from the operating system."""
        field = ring(parameters)
        owner, secret = field.secret_key()
        last = ring(_response_ring(parameters))
        response = last.plaintext(secret[:1])
        coefficients = secret[None, :1].copy()
        request = field.plaintext(secret)
        del secret, owner
        last.inverse(coefficients)
        signed = coefficients[0, 0].astype(np.int64)
        signed[signed > 1] = -1  # the prime less 1
        behind = np.concatenate([-signed[1:], signed])
        return cls(parameters, request, response, behind[::-1].astype(np.float64))

    def times(self, call: Call, c1: U64) -> U64:
        """c1·s at the wanted places, residues [n, rows, cout, tile height, tile width], of c1
        uint64[n, degree], which may be overwritten."""
        packing, start = call.packing, _consecutive(call.packing)
        bits = call.c1_bits - 1 + packing.degree.bit_length() - 1
        if start is not None and bits <= 53:
            return self._summed(c1, call, start)
        field = ring(_response_ring(self.parameters))
        product = c1[:, None]
        field.forward(product)
        field.multiply(product, self.response)
        field.inverse(product)
        wanted: U64 = packing.wanted(product[:, 0])
        return wanted

    def _summed(self, c1: U64, call: Call, start: int) -> U64:
        """As ``times``, coefficient by coefficient, for places that follow each other: c1 without
        its dropped bits is so small that floating-point sums are exact."""
        degree, drop = call.packing.degree, call.scaling.drop_c1
        products = ring(_response_ring(self.parameters)).products
        count = int(np.prod(call.packing.wanted_shape))
        middle = 1 << (call.c1_bits - 1)
        small = (c1 >> np.uint64(drop)).astype(np.int64) - middle
        # Row m holds s, negated where it wraps around, as coefficient start + m of c1·s sees it.
        first = self.turned[degree - 1 - start :]
        rows = np.lib.stride_tricks.as_strided(
            first, (count, degree), (-first.itemsize, first.itemsize), writeable=False
        )
        sums = np.einsum("nk,mk->nm", small.astype(np.float64), rows).astype(np.int64)
        shared = (middle << drop) + ((1 << drop) >> 1)
        offset = [int(total) * shared % call.ring.prime for total in rows.sum(axis=1)]
        made = products.shifted(sums[:, None], drop, np.array(offset, np.int64))
        return made.reshape(-1, *call.packing.wanted_shape)


@lru_cache(maxsize=64)
def _response_ring(parameters: Parameters) -> Parameters:
    return Parameters(parameters.degree, parameters.primes[:1])


@lru_cache(maxsize=4096)
def _consecutive(packing: Packing) -> int | None:
    """Where a polynomial's wanted coefficients start, if they are few and follow each other."""
    places = packing.wanted(np.arange(packing.degree)[None]).reshape(-1)
    if len(places) > _FEW or not np.array_equal(places, np.arange(len(places)) + places[0]):
        return None
    return int(places[0])
