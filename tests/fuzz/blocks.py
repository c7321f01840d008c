"""Residual blocks of random nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from fuzz.nets import RandomNet

__all__ = ["BLOCKS"]

Lines = list[str] | None
_JOINED = ["{a} + {b}", "{b} + {a}", "{a} - {b}", "{b} - {a}", "torch.add({a}, {b}, alpha=2)"]
_BEHIND = ["{v}", "{v}", "{v}.relu()", "functional.hardtanh({v})", "functional.gelu({v})"]


def _layer(net: RandomNet, a: str) -> str | None:
    """A layer that keeps a value's shape, called on it; its channels at times far apart."""
    shape = net.shape(a)
    if not shape:
        return None
    size, images = shape[0], len(shape) in (2, 3) and net.chance(0.7)

    def make() -> nn.Module:
        if not images:
            layer: Any = nn.Linear(shape[-1], shape[-1], bias=net.chance(0.7))
        else:
            kind = nn.Conv1d if len(shape) == 2 else nn.Conv2d
            width = net.pick([0, 1])
            layer = kind(size, size, 2 * width + 1, padding=width, groups=net.pick([1, 1, size]))
        if net.chance(0.3):
            ends = torch.logspace(-1, 1, len(layer.weight))
            layer.weight.data.mul_(ends.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        return layer  # type: ignore[no-any-return]

    return f"self.{net.module_name(make)}({a})"


def residual(net: RandomNet) -> Lines:
    """A branch of one layer or two that is added to its input, or to another layer of it."""
    a, h = net.any(), net.fresh()
    branch = _layer(net, a)
    if branch is None:
        return None
    lines = [f"{h}a = {branch}"]
    if net.chance(0.6):
        net.values[f"{h}a"] = net.values[a]  # of its shape
        again = _layer(net, f"{h}a")
        del net.values[f"{h}a"]
        lines = [f"{h}a = ({branch}).relu()", f"{h}a = {again}"]
    other = _layer(net, a) if net.chance(0.3) else a
    total = net.pick(_JOINED).format(a=f"{h}a", b=other)
    return [*lines, f"{h} = {net.pick(_BEHIND).format(v=f'({total})')}"]


BLOCKS: list[Callable[[RandomNet], Lines]] = [residual] * 16
"""Of one net in four."""
