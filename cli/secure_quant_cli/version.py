"""Which version this is."""

from __future__ import annotations

import secure_quant

__all__ = ["version"]


def version() -> str:
    """Such as ``0.3.0``."""
    return secure_quant.__version__
