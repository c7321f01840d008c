"""Inputs on which two float models are compared: typical, random, extreme, alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MOST_VALUES", "Probe", "make_probes", "samples_of"]

MOST_VALUES = 2**20
"""Input values of one probe, at most; large inputs get fewer samples, at least four."""
_TYPICAL, _OTHERS = 33, 8
_SEED = 10


@dataclass(frozen=True)
class Probe:
    """``name`` for messages, ``x`` float32[n, *input shape]; typical if calibration has it."""

    name: str
    x: Tensor
    typical: bool = False


def samples_of(batches: Sequence[Tensor], most: int) -> Tensor:
    """At most ``most`` samples, spread over all calibration batches: float32[n, *input shape]."""
    total = sum(map(len, batches))
    chosen = sorted({i * total // min(most, total) for i in range(min(most, total))})
    found, start = [], 0
    for batch in batches:
        found.append(batch[[i - start for i in chosen if start <= i < start + len(batch)]])
        start += len(batch)
    return torch.cat(found)


def make_probes(batches: Sequence[Tensor]) -> tuple[Probe, ...]:
    """Calibration samples; random and extreme inputs inside the range that calibration has at each
    position; one sample alone. None has as many samples as the model is captured with, two."""
    room = max(MOST_VALUES // batches[0][0].numel(), 4)
    typical = samples_of(batches, min(_TYPICAL, room))
    while len(typical) < 3:
        typical = torch.cat([typical, typical[:1]])
    low = torch.stack([b.amin(0) for b in batches]).amin(0)
    high = torch.stack([b.amax(0) for b in batches]).amax(0)
    generator = torch.Generator().manual_seed(_SEED)
    count = min(_OTHERS, room)

    def inside(share: Tensor) -> Tensor:
        return low + (high - low) * share

    shape = (count, *low.shape)
    corners = inside(torch.randint(0, 2, shape, generator=generator).float())
    ends = torch.stack([low, high, torch.zeros_like(low).clamp(low, high)])
    return (
        Probe("calibration samples", typical, typical=True),
        Probe("random inputs within the calibration's range",
              inside(torch.rand(shape, generator=generator))),
        Probe("extreme inputs within the calibration's range", torch.cat([ends, corners])),
        Probe("a sample alone", typical[:1], typical=True),
    )  # fmt: skip
