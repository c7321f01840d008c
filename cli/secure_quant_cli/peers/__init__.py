"""Peers measured beside us by ``secure-quant bench --against``: plain CrypTen and plain TenSEAL.

Each module runs the same network as a given model file with the peer's own high-level interface,
in processes of its own, and prints one JSON object. They are used as their authors intend, with
nothing of ours inside.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from secure_quant.errors import DeadlineExceeded, InternalError

__all__ = ["figures_of"]


def figures_of(module: str, *arguments: str, timeout: float) -> dict[str, Any]:
    """Run a peer's module in a process of its own; the object that it prints last.

    Raises InternalError if it fails, DeadlineExceeded.
    """
    name = module.rpartition(".")[2]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", module, *arguments],
            check=True, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise InternalError(f"the peer {name} failed", got=last[:300]) from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(f"the peer {name}", expected=f"<= {timeout:g} s") from error
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
