"""What a maximum of so many candidates takes, without a compiled loop."""

from __future__ import annotations

__all__ = ["pairs", "products"]


def pairs(arity: int) -> int:
    """Comparisons among ``arity`` candidates."""
    return arity * (arity - 1) // 2


def products(arity: int) -> int:
    """Dealt ring elements: 2, 11, 39 for 2, 3, 4 candidates."""
    rest = arity - 1
    return pairs(arity) + rest * ((1 << rest) - 1 - rest) + rest * ((1 << rest) - 1)
