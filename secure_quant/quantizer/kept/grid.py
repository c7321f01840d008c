"""The op that stands where a quantized model rounds, and the scales of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

__all__ = ["ON_GRID", "KeptScales", "kept_scales", "on_grid", "rounding"]

_rounds: ContextVar[bool] = ContextVar("rounds", default=False)


@contextmanager
def rounding() -> Iterator[None]:
    """Within, ``on_grid`` rounds; elsewhere it is the identity."""
    token = _rounds.set(True)
    try:
        yield
    finally:
        _rounds.reset(token)


@torch.library.custom_op("secure_quant::on_grid", mutates_args=())
def on_grid(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """``(clip(round_half_even(x / scale) + zero_point, low, high) - zero_point) · scale``, or x
    itself: see ``rounding``. Of x's shape and dtype."""
    if not _rounds.get():
        return x.clone()
    q = torch.clamp(torch.round(x / scale) + zero_point, low, high)
    return (q - zero_point) * scale


@on_grid.register_fake
def _(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


ON_GRID = torch.ops.secure_quant.on_grid.default


_ONE = 1 / 64
"""Scale of the ones of a layer that does nothing but add a constant."""


class KeptScales:
    """Scales of the int8 weights of a model, in the attribute ``sq_kept`` of its module."""

    def __init__(self) -> None:
        self.values = {_ONE}

    def add(self, scales: Iterable[float]) -> None:
        self.values.update(scales)


def kept_scales(model: object) -> Tensor | None:
    """float64[n], ascending; None for a model that is not quantized, or none at all."""
    if not isinstance(model, nn.Module):
        return None
    found: set[float] = set()
    kept = [own for part in model.modules() if (own := vars(part).get("sq_kept")) is not None]
    for own in kept:
        found |= own.values
    return torch.tensor(sorted(found), dtype=torch.float64) if kept else None
