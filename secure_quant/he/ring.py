"""Exact arithmetic in Z_q[X] / (X^n + 1) on TenSEAL's SEAL: transforms and products.

Integers go in and out through a view of SEAL's own buffers, because TenSEAL offers no bulk access
to coefficients: a pybind11 object holds the address of the C++ object, which holds the address of
its data. ``_self_test`` checks the whole layout when this module is imported, so another build of
TenSEAL is refused by name and never misread.
"""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from secure_quant.errors import ConfigError
from secure_quant.he.parameters import Parameters
from secure_quant.he.products import Products

__all__ = ["Ring", "polynomials", "ring"]

U64 = NDArray[np.uint64]

_HOLDER = 16
"""Byte offset of the C++ object's address in a pybind11 instance."""
_CIPHERTEXT = {
    "ntt": 4,
    "size": 5,
    "degree": 6,
    "primes": 7,
    "capacity": 12,
    "count": 13,
    "data": 14,
}
_PLAINTEXT = {"count": 9, "capacity": 8, "data": 10}
"""8-byte word in the C++ object of each field."""
_BLOCK = 15  # SEAL allows 16 polynomials in a ciphertext; one of them is the guard


class Ring:
    """One ring. Arrays are uint64[n, primes, degree] with residues below each prime."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.degree, self.primes = parameters.degree, parameters.primes
        self.products = Products(self.primes)
        self.moduli: U64 = np.array(self.primes, np.uint64)[:, None]
        self.context = _context(parameters.degree, parameters.chain)
        self.evaluator: Any = seal.Evaluator(self.context)
        self._encoder: Any = seal.CKKSEncoder(self.context)
        self._level = self.context.first_parms_id()
        self._kept = threading.local()

    def forward(self, polynomials: U64) -> None:
        """Coefficients -> values at the roots of X^n + 1 (SEAL's order), in place."""
        self._through(polynomials, self.evaluator.transform_to_ntt_inplace, transformed=False)

    def inverse(self, polynomials: U64) -> None:
        """Values -> coefficients, in place."""
        self._through(polynomials, self.evaluator.transform_from_ntt_inplace, transformed=True)

    def multiply(self, polynomials: U64, factor: Any) -> None:
        """Transformed polynomials times one plaintext (``self.plaintext``), in place."""
        self._through(
            polynomials,
            lambda block: self.evaluator.multiply_plain_inplace(block, factor),
            transformed=True,
        )

    def _through(self, polynomials: U64, operation: Any, *, transformed: bool) -> None:
        for start in range(0, len(polynomials), _BLOCK):
            part = polynomials[start : start + _BLOCK]
            block, view = self._scratch(len(part) + 1, transformed=transformed)
            view[: len(part)] = part
            # SEAL refuses a ciphertext that is zero beyond its first polynomial, as a constant
            # one would be; the guard never is.
            view[len(part)] = 1
            operation(block)
            part[...] = view[: len(part)]

    def _scratch(self, size: int, *, transformed: bool) -> tuple[Any, U64]:
        """A ciphertext of this thread and a view of its polynomials, to be overwritten."""
        kept: dict[int, tuple[Any, U64, ctypes.c_uint8]] = vars(self._kept).setdefault("sizes", {})
        if size not in kept:
            made = self._ciphertext(size, transformed=transformed)
            kept[size] = made, self._view(made), _flag(made)
        block, view, flag = kept[size]
        flag.value = transformed
        return block, view

    def ciphertext(self, c0: U64, c1: U64) -> Any:
        """SEAL ciphertext of two transformed polynomials uint64[primes, degree]."""
        made = self._ciphertext(2, transformed=True)
        view = self._view(made)
        view[0], view[1] = c0, c1
        return made

    def plaintext(self, values: U64) -> Any:
        """SEAL plaintext of one transformed polynomial uint64[primes, degree], not all zero."""
        made = seal.Plaintext()
        self._encoder.encode(1.0, self._level, 1.0, made)
        _buffer(made, _PLAINTEXT, values.size)[:] = values.reshape(-1)
        return made

    def polynomials(self, ciphertext: Any) -> U64:
        """Copy [size, primes, degree] of a ciphertext's polynomials."""
        return self._view(ciphertext).copy()

    def rescale(self, ciphertext: Any) -> None:
        """Divide by all primes but the first, the last one first, drop them and go back to
        coefficients, in place."""
        for _ in self.primes[1:]:
            self.evaluator.rescale_to_next_inplace(ciphertext)
        self.evaluator.transform_from_ntt_inplace(ciphertext)

    def secret_key(self) -> tuple[Any, U64]:
        """A fresh ternary key of SEAL's own making (random from the operating system): the object
        that owns and wipes it, and a view of its transform uint64[primes, degree]."""
        owner = seal.KeyGenerator(self.context).secret_key()
        count = len(self.parameters.chain) * self.degree
        whole = _buffer(owner.data(), _PLAINTEXT, count).reshape(-1, self.degree)
        return owner, whole[: len(self.primes)]

    def residues(self, values: NDArray[np.int64]) -> U64:
        """Signed int64[..., degree], |value| below every prime -> uint64[..., primes, degree]."""
        signed = values[..., None, :]
        # An arithmetic shift makes -1, all ones, of what is negative.
        made: U64 = (signed + ((signed >> 63) & self.moduli.view(np.int64))).view(np.uint64)
        return made

    def add(self, x: U64, y: U64) -> U64:
        """Sum of residues."""
        total = x + y
        # Where the sum is below the modulus, the difference wraps to something huge.
        made: U64 = np.minimum(total, total - self.moduli)
        return made

    def _ciphertext(self, size: int, *, transformed: bool) -> Any:
        made = seal.Ciphertext(self.context)
        made.resize(self.context, self._level, size)
        _flag(made).value = transformed
        return made

    def _view(self, ciphertext: Any) -> U64:
        size, primes = ciphertext.size(), ciphertext.coeff_modulus_size()
        flat = _buffer(ciphertext, _CIPHERTEXT, size * primes * self.degree)
        return flat.reshape(size, primes, self.degree)


@lru_cache(maxsize=16)
def ring(parameters: Parameters) -> Ring:
    """The ring of these parameters, made once per process."""
    return Ring(parameters)


def polynomials(ciphertext: Any) -> U64:
    """Copy uint64[size, primes, degree] of the polynomials of a ciphertext of either of TenSEAL's
    modules."""
    words = [_word(ciphertext, _CIPHERTEXT[name]) for name in ("size", "primes", "degree")]
    size, primes, degree = words
    flat = _buffer(ciphertext, _CIPHERTEXT, size * primes * degree)
    return flat.reshape(size, primes, degree).copy()


def _context(degree: int, chain: tuple[int, ...]) -> Any:
    draft = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    draft.set_poly_modulus_degree(degree)
    draft.set_coeff_modulus([seal.Modulus(prime) for prime in chain])
    context = seal.SEALContext(draft, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise ConfigError("SEAL parameters", got=context.parameters_error_name(), expected="valid")
    return context


def _address(owner: Any) -> int:
    address: int = ctypes.c_uint64.from_address(id(owner) + _HOLDER).value
    return address


def _flag(ciphertext: Any) -> ctypes.c_uint8:
    """Whether SEAL takes the polynomials to be transformed."""
    return ctypes.c_uint8.from_address(_address(ciphertext) + 8 * _CIPHERTEXT["ntt"])


def _word(owner: Any, index: int) -> int:
    word: int = ctypes.c_uint64.from_address(_address(owner) + 8 * index).value
    return word


def _buffer(owner: Any, layout: dict[str, int], count: int) -> U64:
    """View of SEAL's own memory; valid while ``owner`` lives and is not resized."""
    pointer = _word(owner, layout["data"])
    return np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(pointer))


def _self_test() -> None:
    """Raises ConfigError if the objects of this TenSEAL do not lie in memory as said above."""
    degree, prime = 1024, 132120577
    context = _context(degree, (prime,))
    level = context.first_parms_id()
    ciphertext, plaintext = seal.Ciphertext(context), seal.Plaintext()
    ciphertext.resize(context, level, 3)
    seal.CKKSEncoder(context).encode(1.0, level, 1.0, plaintext)
    expected = {"ntt": 0, "size": 3, "degree": degree, "primes": 1, "count": 3 * degree}
    found = {name: _word(ciphertext, _CIPHERTEXT[name]) for name in expected}
    found["ntt"] &= 0xFF
    if found != expected or _word(plaintext, _PLAINTEXT["count"]) != degree:
        raise ConfigError("memory layout of this TenSEAL", got=found, expected=expected)
    values = np.arange(3 * degree, dtype=np.uint64) * 40503 % prime
    _buffer(ciphertext, _CIPHERTEXT, 3 * degree)[:] = values
    seen = [ciphertext.data(i) for i in range(3)]
    ones = set(_buffer(plaintext, _PLAINTEXT, degree).tolist())
    if seen != values[::degree].tolist() or ones != {1}:
        raise ConfigError(
            "memory layout of this TenSEAL", got="other data", expected="what was put"
        )


_self_test()
