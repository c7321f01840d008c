"""The modules and functions that models of one operator are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Cell", "ChannelsFirst", "Cross", "First", "LastState", "TimeFirst", "TwoHalves", "of", "qkv",
    "rotated", "windows", "with_statistics",
]  # fmt: skip


class Of(nn.Module):
    """A function of x and of some constants."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for number, shape in enumerate(shapes):
            self.register_buffer(f"c{number}", torch.randn(shape))
        self.count = len(shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, f"c{i}") for i in range(self.count)))


class First(nn.Module):
    """The first of what ``inner`` returns, of x on every place of ``times``."""

    def __init__(self, inner: nn.Module, times: int = 1, **options: Any) -> None:
        super().__init__()
        self.inner, self.times, self.options = inner, times, options

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(*[x] * self.times, **self.options)[0]


class Cell(nn.Module):
    """A recurrent cell, step by step over [batch, time, features]."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, made = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t]) if state is None else self.cell(x[:, t], state)
            made.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(made, 1)


class Cross(nn.Module):
    """Attention of the first rows over the others."""

    def __init__(self, inner: nn.Module, rows: int) -> None:
        super().__init__()
        self.inner, self.rows = inner, rows

    def forward(self, x: Tensor) -> Tensor:
        q, kv = x[:, : self.rows], x[:, self.rows :]
        if isinstance(self.inner, nn.MultiheadAttention):
            return self.inner(q, kv, kv, need_weights=False)[0]
        return self.inner(q, kv)


def with_statistics(norm: Any) -> nn.Module:
    """A norm with statistics and parameters that are not 0 and 1."""
    for name, value in norm.named_buffers():
        if name == "running_mean":
            value.normal_()
        elif name == "running_var":
            value.uniform_(0.3, 1.5)
    for name, value in norm.named_parameters():
        nn.init.normal_(value, float(name == "weight"), 0.3)
    return norm  # type: ignore[no-any-return]


def of(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable[[], nn.Module]:
    return lambda: Of(function, *shapes)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions on [batch, heads, time, d]."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 0.3 ** torch.arange(half)[None]
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


def windows(x: Tensor) -> Tensor:
    """Windows of Swin as samples, and back."""
    b, h, w, c = x.shape
    y = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    y = (y @ y.transpose(1, 2)).softmax(-1) @ y
    return y.reshape(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)


def qkv(x: Tensor) -> Tensor:
    b, n, d = x.shape
    q, k, v = x.reshape(b, n, 3, 2, d // 6).permute(2, 0, 3, 1, 4).unbind(0)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d // 3)


class TwoHalves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(*x.split(4, -1))  # type: ignore[no-any-return]


class ChannelsFirst(nn.Module):
    """The LayerNorm of ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = with_statistics(nn.LayerNorm(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class TimeFirst(nn.Module):
    """A module that wants [time, batch, features]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        attends = isinstance(self.inner, nn.MultiheadAttention)
        made = self.inner(x, x, x, need_weights=False) if attends else self.inner(x)
        return made[0].transpose(0, 1)  # type: ignore[no-any-return]


class LastState(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[1][0][-1]  # type: ignore[no-any-return]
