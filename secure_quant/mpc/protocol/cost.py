"""What one inference costs, exactly: counted by the plan, not measured."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost", "lift_bits", "packed_bytes", "words"]


@dataclass(frozen=True)
class Cost:
    """rounds: simultaneous exchanges. online: payload bytes that each party sends. offline: bytes
    that the dealer sends to a party (seed and corrections), for the whole batch."""

    rounds: int
    online_bytes_per_direction: int
    offline_bytes_party0: int
    offline_bytes_party1: int


def packed_bytes(elements: int, bits: int) -> int:
    """Bytes of one payload: elements of ``bits`` bits end to end."""
    return (elements * bits + 7) // 8


def words(elements: int, bits: int) -> int:
    """64-bit words of one field of material; a field starts at a word."""
    return (elements * bits + 63) // 64


def lift_bits(width: int, ring: int) -> int:
    """Ring shares of the bits of one number: the one of weight 2^j matters mod 2^(ring-j)."""
    return sum(max(ring - j, 0) for j in range(width))
