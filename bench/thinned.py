"""A model with one block of each kind in a stage: what can be quantized, at a fraction of the time.

Of the blocks in an ``nn.Sequential``, or in a ModuleList of blocks, those of the same classes,
options and shapes are one. Where the forward then fails, the model stays whole.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["thinned"]

_OPTIONS = ("stride", "dilation", "groups", "kernel_size", "shift_size", "mode", "dim", "act")


def thinned(model: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """The thinner model for samples of ``shape``, and how many blocks it lacks."""
    made, lacks = copy.deepcopy(model), 0
    for name, part in list(made.named_modules()):
        blocks = isinstance(part, nn.ModuleList) and "block" in name.rsplit(".", 1)[-1]
        if isinstance(part, nn.Sequential) or blocks:
            lacks += _thin(part)
    try:
        with torch.no_grad():
            made.eval()(torch.zeros(2, *shape))
    except Exception:  # noqa: BLE001  its forward counts on the blocks
        return model, 0
    return made, lacks


def _thin(part: nn.Module) -> int:
    """In place, blocks with parameters only; how many were dropped."""
    seen: set[Any] = set()
    kept: list[tuple[str, nn.Module]] = []
    for name, block in part.named_children():
        kind = _kind(block)
        if kind not in seen or not list(block.parameters()):
            kept.append((name, block))
        seen.add(kind)
    dropped = len(part) - len(kept)  # type: ignore[arg-type]
    if dropped:
        names = kept if isinstance(part, nn.Sequential) else [
            (str(place), block) for place, (_, block) in enumerate(kept)
        ]  # fmt: skip
        part._modules.clear()
        part._modules.update(dict(names))
    return dropped


def _kind(block: nn.Module) -> Any:
    """What two blocks must share to do the same with other numbers."""
    shapes = tuple((name, tuple(value.shape)) for name, value in block.state_dict().items())
    options = tuple(
        (type(part), *(str(getattr(part, name, None)) for name in _OPTIONS))
        for part in block.modules()
    )
    return shapes, options
