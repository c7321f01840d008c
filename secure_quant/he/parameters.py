"""Ring parameters, fixed here so that planning needs no cryptographic library.

The primes are those of SEAL's ``CoeffModulus::Create`` for the degree; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from secure_quant.errors import ConfigError, InsecureRefused

__all__ = ["MAX_MODULUS_BITS", "TIERS", "Parameters", "Tier"]

Tier = Literal["T1", "T1-strict"]

MAX_MODULUS_BITS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430}
"""Degree -> bits of the modulus of what is published, at 128-bit security against classical
attacks with a ternary secret. Source: Bossuat et al., Security Guidelines for Implementing
Homomorphic Encryption, eprint 2024/463, table 5.2; one to eight bits below the tables of 2018,
which SEAL checks."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Z_q[X] / (X^degree + 1) with q the product of ``primes``.

    primes   one, or two or three of which the server rescales all but the first away before it
             answers.
    special  the last prime of SEAL's chain where there are several; SEAL keeps it for key
             switching, which this protocol never does, so no published value is reduced by it and
             it does not count for security.

    Raises InsecureRefused below 128-bit security, ConfigError for a shape that is not served.
    """

    degree: int
    primes: tuple[int, ...]
    special: int | None = None

    def __post_init__(self) -> None:
        if self.degree not in MAX_MODULUS_BITS or not 1 <= len(self.primes) <= 3:
            raise ConfigError(
                "ring", got=f"degree {self.degree}, {len(self.primes)} primes",
                expected=f"a degree of {sorted(MAX_MODULUS_BITS)} and one to three primes",
            )  # fmt: skip
        bits = sum(prime.bit_length() for prime in self.primes)
        if bits > MAX_MODULUS_BITS[self.degree]:
            raise InsecureRefused(
                f"modulus at degree {self.degree}", got=f"{bits} bits",
                expected=f"<= {MAX_MODULUS_BITS[self.degree]} bits for 128-bit security",
            )  # fmt: skip

    @property
    def chain(self) -> tuple[int, ...]:
        """SEAL's coefficient modulus chain."""
        return self.primes if self.special is None else (*self.primes, self.special)

    @property
    def prime(self) -> int:
        """The prime of a response."""
        return self.primes[0]

    @property
    def dropped(self) -> int:
        """What rescaling divides by: the product of all primes but the first, or 1."""
        return prod(self.primes[1:])

    @property
    def rounding(self) -> float:
        """Bound on what rescaling rounds off, in halves of a unit: the last prime goes first, and
        what is rounded there is divided by the one before it."""
        return sum(1 / prod(self.primes[1:last]) for last in range(1, len(self.primes)))


_WIDEST = Parameters(8192, (36028797018652673, 1125899906826241), 163841)
"""Holds every layer that the graph allows: accumulators up to 2**31."""

TIERS: dict[Tier, tuple[Parameters, ...]] = {
    "T1": (
        Parameters(2048, (9007199254614017,)),
        Parameters(4096, (1152921504606830593,)),
        Parameters(8192, (1152921504606830593,)),
        _WIDEST,
    ),
    "T1-strict": (Parameters(4096, (140737488273409, 70368743669761), 40961), _WIDEST),
}
"""Hiding tier -> the rings a plan may use; no other is accepted from a peer."""
