"""The networks of ``bench/spu.py`` in plain jax, with random weights from a fixed seed.

Each is the architecture that we measure under the same name: the models of ``secure-quant bench``
and of ``bench/large.py``. Convolutions have BatchNorm folded in, as ours have. ``puma``: GELU and
softmax as PUMA (arXiv 2307.12533, section 3) has them for SPU, coarser and faster than jax's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["NAMES", "Network", "network"]

NAMES = ("bert", "lenet", "linear", "mlp", "resnet18", "resnet20", "transformer")


@dataclass(frozen=True)
class Network:
    """``call(*arrays)`` in jax; the first array is the input, the others are weights, float32."""

    call: Callable[..., Any]
    arrays: list[np.ndarray]


def network(name: str, batch: int, *, layers: int = 1, puma: bool = False) -> Network:
    """One of NAMES. layers: of bert."""
    if name in ("linear", "mlp"):
        return _mlp(batch, (8, 32) if name == "linear" else (64, 128, 10))
    if name == "lenet":
        return _lenet(batch)
    if name == "transformer":
        return _encoder(batch, 16, 64, 4, 128, 1, pre_norm=True, puma=puma)
    if name == "bert":
        return _encoder(batch, 128, 768, 12, 3072, layers, pre_norm=False, puma=puma)
    if name == "resnet20":
        return _resnet(batch, 32, [16, 32, 64], blocks=3, classes=10)
    if name == "resnet18":
        return _resnet(batch, 224, [64, 128, 256, 512], blocks=2, classes=1000)
    raise ValueError(f"network: got {name!r}, expected one of {', '.join(NAMES)}")


class _Arrays:
    """Collects what a network takes, in the order in which it takes it."""

    def __init__(self, *shape: int) -> None:
        self._rng = np.random.default_rng(3)
        self.made = [self._rng.standard_normal(shape).astype(np.float32)]

    def weight(self, *shape: int, gain: float = 2.0) -> None:
        """So that what a layer makes has about the size of what it reads (He et al. 2015), and a
        bias: [out, in, height, width] of a convolution, [in, out] of a linear layer."""
        conv = len(shape) == 4
        reads, out = (int(np.prod(shape[1:])), shape[0]) if conv else shape
        values = self._rng.standard_normal(shape) * np.sqrt(gain / reads)
        bias = self._rng.standard_normal((out, 1, 1) if conv else out) * 0.1
        self.made += [values.astype(np.float32), bias.astype(np.float32)]

    def norm(self, width: int) -> None:
        """Gain and bias of a LayerNorm."""
        rng = self._rng
        self.made.append((1 + 0.1 * rng.standard_normal(width)).astype(np.float32))
        self.made.append((0.1 * rng.standard_normal(width)).astype(np.float32))


def _mlp(batch: int, widths: Sequence[int]) -> Network:
    import jax

    arrays = _Arrays(batch, widths[0])
    for reads, out in pairwise(widths):
        arrays.weight(reads, out)

    def call(x: Any, *p: Any) -> Any:
        for at in range(0, len(p), 2):
            x = (jax.nn.relu(x) if at else x) @ p[at] + p[at + 1]
        return x

    return Network(call, arrays.made)


def _conv(x: Any, p: Iterator[Any], stride: int = 1, padding: int = 0) -> Any:
    from jax import lax

    pads = ((padding, padding), (padding, padding))
    kernel, bias = next(p), next(p)
    axes = ("NCHW", "OIHW", "NCHW")
    made = lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=axes)
    return made + bias


def _max_pool(x: Any, size: int, stride: int) -> Any:
    from jax import lax

    window, strides = (1, 1, size, size), (1, 1, stride, stride)
    return lax.reduce_window(x, -np.inf, lax.max, window, strides, "VALID")


def _lenet(batch: int) -> Network:
    import jax

    arrays = _Arrays(batch, 3, 32, 32)
    for shape in ((6, 3, 5, 5), (16, 6, 5, 5), (400, 120), (120, 84), (84, 10)):
        arrays.weight(*shape)

    def call(x: Any, *weights: Any) -> Any:
        p = iter(weights)
        for _ in range(2):
            x = _max_pool(jax.nn.relu(_conv(x, p)), 2, 2)
        x = x.reshape(batch, 400)
        for _ in range(2):
            x = jax.nn.relu(x @ next(p) + next(p))
        return x @ next(p) + next(p)

    return Network(call, arrays.made)


def _resnet(batch: int, size: int, widths: Sequence[int], *, blocks: int, classes: int) -> Network:
    """Basic blocks of two 3×3 convolutions; at 224 with the stem of ImageNet's ResNets."""
    import jax
    import jax.numpy as jnp

    stem = size == 224
    arrays = _Arrays(batch, 3, size, size)
    arrays.weight(widths[0], 3, *((7, 7) if stem else (3, 3)))
    plan = []
    have = widths[0]
    for stage, want in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            plan.append((stride, have != want))
            arrays.weight(want, have, 3, 3)
            arrays.weight(want, want, 3, 3, gain=0.5)  # so that blocks do not add up
            if have != want:
                arrays.weight(want, have, 1, 1, gain=1.0)
            have = want
    arrays.weight(have, classes)

    def call(x: Any, *weights: Any) -> Any:
        p = iter(weights)
        x = jax.nn.relu(_conv(x, p, 2, 3) if stem else _conv(x, p, 1, 1))
        if stem:  # nothing is below zero here, so that zeros pad a maximum
            x = _max_pool(jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), 3, 2)
        for stride, projected in plan:
            y = jax.nn.relu(_conv(x, p, stride, 1))
            y = _conv(y, p, 1, 1)
            x = jax.nn.relu(y + (_conv(x, p, stride) if projected else x))
        return x.mean((2, 3)) @ next(p) + next(p)

    return Network(call, arrays.made)


def _encoder(
    batch: int, length: int, width: int, heads: int, hidden: int, layers: int, *,
    pre_norm: bool, puma: bool,
) -> Network:  # fmt: skip
    """Encoder layers of a transformer on embedded tokens [batch, length, width]."""
    import jax

    gelu, softmax = (_puma_gelu, _puma_softmax) if puma else (jax.nn.gelu, jax.nn.softmax)
    arrays = _Arrays(batch, length, width)
    for _ in range(layers):
        arrays.norm(width)
        arrays.weight(width, 3 * width, gain=1.0)
        arrays.weight(width, width, gain=1.0)
        arrays.norm(width)
        arrays.weight(width, hidden)
        arrays.weight(hidden, width)
    size = width // heads

    def norm(x: Any, gain: Any, bias: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * gain + bias

    def attend(x: Any, p: Iterator[Any]) -> Any:
        qkv = (x @ next(p) + next(p)).reshape(batch, length, 3, heads, size)
        q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        weights = softmax(q @ k.transpose(0, 1, 3, 2) * size**-0.5)
        mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, length, width)
        return mixed @ next(p) + next(p)

    def forward(x: Any, p: Iterator[Any]) -> Any:
        x = gelu(x @ next(p) + next(p))
        return x @ next(p) + next(p)

    def call(x: Any, *weights: Any) -> Any:
        p = iter(weights)
        for _ in range(layers):
            for part in (attend, forward):
                gain, bias = next(p), next(p)
                if pre_norm:
                    x = x + part(norm(x, gain, bias), p)
                else:
                    x = norm(x + part(x, p), gain, bias)
        return x

    return Network(call, arrays.made)


def _puma_gelu(x: Any) -> Any:
    """0 below -4, a cubic to -1.95, an even polynomial of degree 6 plus x/2 to 3, then x."""
    import jax.numpy as jnp

    below, left, right = x < -4.0, x < -1.95, x > 3.0
    low, middle, high = below ^ left, left ^ right ^ True, right
    x2 = x * x
    x3, x4 = x * x2, x2 * x2
    x6 = x2 * x4
    cubic = -0.5054031199708174 - 0.42226581151983866 * x
    cubic += -0.11807612951181953 * x2 - 0.011034134030615728 * x3
    even = 0.008526321541038084 + 0.5 * x + 0.3603292692789629 * x2
    even += -0.037688200365904236 * x4 + 0.0018067462606141187 * x6
    return low * cubic + middle * even + high * jnp.asarray(x)


def _puma_softmax(x: Any) -> Any:
    """Exponentials only above -14 below the maximum, and one reciprocal a row."""
    import jax.numpy as jnp

    x = x - x.max(-1, keepdims=True)
    made = jnp.exp(x) * (x > -14.0)
    return made * (1 / made.sum(-1, keepdims=True))
