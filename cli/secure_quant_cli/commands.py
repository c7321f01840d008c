"""The commands, each a module of this package."""

from __future__ import annotations

__all__ = ["COMMANDS"]

COMMANDS = (
    "quantize", "inspect", "export", "split", "certs", "make-token", "serve", "health", "doctor",
    "infer", "verify", "gateway", "bench", "demo", "add-crypten", "completion",
)  # fmt: skip
