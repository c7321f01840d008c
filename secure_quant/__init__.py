"""Exact int8 models under encryption: quantize, split, serve, and compare bit for bit.

The owner's door. ``quantize`` needs torch, which is imported on first use only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secure_quant import reference
from secure_quant.ir import Graph, load, save

if TYPE_CHECKING:
    from secure_quant.quantizer import quantize

__all__ = ["Graph", "__version__", "load", "quantize", "reference", "save"]

__version__ = "0.3.0"


def __getattr__(name: str) -> Any:
    if name == "quantize":
        from secure_quant.quantizer import quantize

        return quantize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
