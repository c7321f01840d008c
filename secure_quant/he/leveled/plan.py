"""Degree, modulus chain and scale for a leveled model, and the bound of its error.

The chain is [q0, s … s, special]: a prime of the scale's size for each product and each square,
q0 to hold the outputs, and SEAL's special prime for key switching.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, isfinite, log2

from secure_quant.errors import (
    InsecureRefused,
    InvalidGraph,
    MalformedModel,
    OpNotSupported,
    PlanMismatch,
)
from secure_quant.he.leveled.bound import naf, output_error, value_bounds
from secure_quant.he.leveled.model import LeveledModel, PublicLeveled
from secure_quant.he.parameters import MAX_MODULUS_BITS
from secure_quant.ir.container import unique_keys

__all__ = ["LeveledPlan", "padded", "plan", "primes_of"]

DEGREES = (4096, 8192, 16384)
SCALE_BITS = range(45, 21, -1)
MAX_PRIME_BITS = 60
"""SEAL's limit."""
TOLERANCE = 1e-3


@dataclass(frozen=True)
class LeveledPlan:
    """Public. ``error_bound``: the largest error of any output, in units of the output, unless
    with probability below 2^-40; derived from the weights, so it tells one number about them.

    Raises InsecureRefused below 128-bit security, InvalidGraph for a plan that cannot be run.
    """

    public: PublicLeveled
    degree: int
    chain_bits: tuple[int, ...]
    scale_bits: int
    error_bound: float

    def __post_init__(self) -> None:
        if self.degree not in DEGREES or self.scale_bits not in SCALE_BITS:
            got = f"degree {self.degree}, scale of {self.scale_bits} bits"
            raise InvalidGraph("leveled plan", got=got, expected=f"a degree of {DEGREES}")
        bits, limit = sum(self.chain_bits), MAX_MODULUS_BITS[self.degree]
        if bits > limit:
            raise InsecureRefused(
                f"modulus at degree {self.degree}", got=f"{bits} bits",
                expected=f"<= {limit} bits for 128-bit security",
            )  # fmt: skip
        inner = (self.scale_bits,) * _levels(self.public)
        q0 = self.chain_bits[:1]
        if self.chain_bits != (*q0, *inner, self.scale_bits) or not (
            self.scale_bits < q0[0] <= MAX_PRIME_BITS
        ):
            raise InvalidGraph("modulus chain", got=self.chain_bits, expected="one per level")
        if max(padded(self.public)) > self.degree // 2 or self.outputs > self.degree // 2:
            raise InvalidGraph("widths", got=self.public.widths, expected=f"<= {self.degree // 2}")
        if not (isfinite(self.error_bound) and self.error_bound > 0):
            raise InvalidGraph("error bound", got=self.error_bound, expected="finite, > 0")

    @property
    def primes(self) -> tuple[int, ...]:
        """SEAL's coefficient modulus; the last one is special."""
        return primes_of(self.degree, self.chain_bits)

    @property
    def scale(self) -> int:
        """Value of a slot -> integer: 2**scale_bits."""
        return 1 << self.scale_bits

    @property
    def largest(self) -> float:
        """No value of the model is larger in magnitude: q0 has two bits to spare above it."""
        return 2.0 ** (self.chain_bits[0] - self.scale_bits - 2)

    @property
    def outputs(self) -> int:
        return self.public.widths[-1]

    @property
    def steps(self) -> tuple[int, ...]:
        """Rotations that need a Galois key, ascending: SEAL makes every rotation by 1 to width - 1
        from those of its non-adjacent form."""
        widest = max(padded(self.public))
        return tuple(sorted({term for i in range(1, widest) for term in naf(i)}))

    def require_own(self) -> None:
        """That the modulus is the one that ``plan`` chooses at this degree for values of this
        size. Degree, size and error bound follow from the weights and are the owner's word.

        Raises PlanMismatch.
        """
        own = _chain(self.public, self.degree, self.chain_bits[0] - self.scale_bits)
        if own != self.chain_bits:
            raise PlanMismatch(
                "modulus chain", got=f"a scale of {self.scale_bits} bits",
                expected=f"{own[-1]} bits at degree {self.degree}" if own else "another degree",
                hint="a server of the same release, or one that does not tell the truth",
            )  # fmt: skip

    def to_json(self) -> bytes:
        """Canonical; the public model itself stands beside it."""
        document = {
            "degree": self.degree,
            "chain_bits": list(self.chain_bits),
            "scale_bits": self.scale_bits,
            "error_bound": float(self.error_bound).hex(),
        }
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, public: PublicLeveled) -> LeveledPlan:
        """Inverse of ``to_json``. Raises MalformedModel, InvalidGraph, InsecureRefused."""
        if len(data) > 4096:
            raise MalformedModel("leveled plan", got=f"{len(data)} bytes", expected="<= 4096")
        try:
            document = json.loads(data.decode(), object_pairs_hook=unique_keys)
            degree, bits = document["degree"], document["chain_bits"]
            scale, bound = document["scale_bits"], float.fromhex(document["error_bound"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise MalformedModel("leveled plan", got="not its JSON") from error
        whole = isinstance(bits, list) and all(type(n) is int and 0 < n <= 60 for n in bits)
        if not whole or type(degree) is not int or type(scale) is not int:
            raise MalformedModel("leveled plan", expected="a degree, bits of primes and a scale")
        return cls(public, degree, tuple(bits), scale, bound)


def plan(model: LeveledModel, *, tolerance: float = TOLERANCE) -> LeveledPlan:
    """The smallest degree whose proven error is at most ``tolerance`` in units of the output, and
    there the largest scale. Raises OpNotSupported where none fits 128-bit security."""
    public = model.public()
    best = float("inf")
    largest = max(model.input_bound, *(float(bound.max()) for bound in value_bounds(model)))
    for degree in DEGREES:
        if max(*padded(public), public.widths[-1]) > degree // 2:
            continue
        # One bit for the sign, one for error and rounding.
        chain = _chain(public, degree, ceil(log2(max(largest, 1.0))) + 2)
        if chain is None:
            continue
        error = output_error(model, degree, primes_of(degree, chain), chain[-1])
        best = min(best, error)
        if error <= tolerance:
            return LeveledPlan(public, degree, chain, chain[-1], error)
    raise OpNotSupported(
        f"leveled CKKS with {len(model.layers)} layers and values up to {largest:.3g}",
        got=f"an error up to {best:.3g} at 128-bit security", expected=f"<= {tolerance:g}",
        hint="fewer layers, a smaller input bound or more tolerance",
    )  # fmt: skip


def _chain(public: PublicLeveled, degree: int, room: int) -> tuple[int, ...] | None:
    """Bits of the primes with the largest scale that is secure at that degree, q0 having ``room``
    bits above it; None where there is none. A smaller scale errs more."""
    for bits in SCALE_BITS:
        chain = (bits + room, *(bits,) * (_levels(public) + 1))
        if chain[0] > MAX_PRIME_BITS or sum(chain) > MAX_MODULUS_BITS[degree]:
            continue
        try:
            primes_of(degree, chain)
        except OpNotSupported:
            continue
        return chain
    return None


def padded(public: PublicLeveled) -> tuple[int, ...]:
    """The width of each layer's input, filled with zeros to a power of two above 1, so that copies
    of it fill all slots and no slot holds anything else."""
    return tuple(1 << max(1, (width - 1).bit_length()) for width in public.widths[:-1])


@lru_cache(maxsize=256)
def primes_of(degree: int, chain_bits: tuple[int, ...]) -> tuple[int, ...]:
    """SEAL's ``CoeffModulus::Create``: primes 1 mod 2·degree, the largest of each size, handed out
    from the smallest of them. Raises OpNotSupported where there are too few."""
    found: dict[int, list[int]] = {}
    for bits in set(chain_bits):
        count, step = chain_bits.count(bits), 2 * degree
        candidate = ((1 << bits) - 1) // step * step + 1
        primes: list[int] = []
        while len(primes) < count and candidate > 1 << (bits - 1):
            if _is_prime(candidate):
                primes.append(candidate)
            candidate -= step
        if len(primes) < count:
            raise OpNotSupported(f"primes of {bits} bits", got=len(primes), expected=count)
        found[bits] = primes
    return tuple(found[bits].pop() for bits in chain_bits)


def _levels(public: PublicLeveled) -> int:
    """Products and squares."""
    layers = len(public.widths) - 1
    return 2 * layers - 1


def _is_prime(number: int) -> bool:
    """Miller and Rabin; certain below 3.3e24 with these bases (Sorenson and Webster, 2015)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if any(number % base == 0 for base in bases):
        return number in bases
    twos = ((number - 1) & (1 - number)).bit_length() - 1
    odd = (number - 1) >> twos
    for base in bases:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True
