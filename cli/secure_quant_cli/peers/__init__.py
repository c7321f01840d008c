"""Peers measured beside us by ``secure-quant bench --against``: stock CrypTen and stock TenSEAL.

Each module runs the same network as a given model file with the peer's own high-level interface,
in processes of its own, and prints one JSON object. They are used as their authors intend, with
nothing of ours inside.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

__all__ = ["figures_of"]


def figures_of(module: str, *arguments: str, timeout: float) -> dict[str, Any]:
    """Run a peer's module in a process of its own; the object that it prints last.

    Raises CalledProcessError, TimeoutExpired.
    """
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", module, *arguments],
        check=True, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
