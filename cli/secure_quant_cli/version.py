"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import version as installed

__all__ = ["version"]


def version() -> str:
    """Such as ``0.1.0``."""
    return installed("secure-quant")
