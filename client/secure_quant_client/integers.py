"""What a client of an exact engine knows of a model, whatever the engine."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import Graph
from secure_quant_client.driver import Deadline
from secure_quant_client.program import Program
from secure_quant_client.stats import Inference

__all__ = ["IntegerModel"]


class IntegerModel(Protocol):
    """Of an exact engine, as its client knows it."""

    @property
    def graph(self) -> Graph: ...

    @property
    def batch(self) -> int:
        """Most samples of one call; a larger input travels as several."""

    def patience_s(self, samples: int) -> float:
        """Seconds that so many samples may take on slow machines and networks."""

    def infer(
        self, q: NDArray[Any], deadline: Deadline, *, watched: bool = False
    ) -> Program[Inference[np.int64]]:
        """int8[batch, *input shape] -> int64[batch, *output shape]. watched: somebody wants to hear
        how far it is."""
