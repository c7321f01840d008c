"""How long the values of a walk along the gates are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from secure_quant.mpc.protocol.gates.base import Gate

__all__ = ["Uses"]


class Uses:
    """Which values are still needed, while the gates are walked in order."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        self._left = Counter(name for gate in gates for name in gate.inputs)

    def release(self, gate: Gate, values: dict[str, Any]) -> None:
        """``gate`` has its inputs: forget those of them that no later gate needs."""
        for name in gate.inputs:
            self._left[name] -= 1
            if not self._left[name]:
                del values[name]
