"""Compiled loops over batches of elements.

A module of them is loaded when its name is first used: numba and the loops are 70 MB, and a front
has plans but runs none.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_quant.mpc.kernels import (
        batched,
        bits,
        cases,
        lookups,
        maxima,
        ramps,
        shifts,
        tallies,
    )

__all__ = ["batched", "bits", "cases", "load", "lookups", "maxima", "ramps", "shifts", "tallies"]


def load() -> None:
    """All of them, now: for a process that is to compile nothing while others wait."""
    import_module(f"{__name__}.batched")


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
