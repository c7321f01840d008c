"""Small nets of ops drawn by a seed."""

from __future__ import annotations

import numpy as np

from conformance.builder import Net
from secure_quant.ir import Graph, ops

SALT = bytes(range(32))


def any_table(seed: int, entries: int, largest: int) -> tuple[int, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(-largest, largest + 1, entries).tolist())


def random_graph(seed: int) -> Graph:
    """A small net of ops drawn by ``seed``: pictures, then vectors or rows."""
    first = np.random.default_rng(seed + 10_000)
    shape = (int(first.integers(1, 5)), int(first.integers(4, 9)), int(first.integers(4, 9)))
    net = Net(seed, shape, zero_point=int(first.integers(-128, 128)))
    rng = net.rng
    for _ in range(int(rng.integers(1, 4))):
        _picture_step(net)
    if rng.integers(2):
        net.flatten()
    else:
        net.reshape(net.shape[0], net.shape[1] * net.shape[2])
    for _ in range(int(rng.integers(1, 4))):
        _row_step(net)
    if rng.integers(2):
        net.linear(int(rng.integers(1, 9)))
    return net.done(salt=SALT, per_channel=isinstance(net.nodes[-1], ops.ACCUMULATING))


def _random_requantize(net: Net) -> str:
    rng = net.rng
    zero_point = int(rng.integers(-60, 60))
    entries = int(rng.choice([64, 200, 256, 300, 512]))
    table = any_table(int(rng.integers(99)), entries, 127) if rng.integers(3) == 0 else None
    return net.requantize(
        table, entries=entries, zero_point=zero_point,
        per_channel=bool(rng.integers(2)), sharper=int(rng.integers(-1, 5)),
    )  # fmt: skip


def _conv_step(net: Net) -> None:
    rng = net.rng
    channels, height, width = net.shape
    kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    padding = (int(rng.integers(0, 3)), int(rng.integers(0, 3)))
    spans = [n + 2 * p for n, p in zip((height, width), padding, strict=True)]
    dilation = tuple(
        int(rng.integers(1, 3)) if (k - 1) * 2 + 1 <= n else 1
        for k, n in zip(kernel, spans, strict=True)
    )
    kernel = tuple(min(k, n) for k, n in zip(kernel, spans, strict=True))
    groups = int(rng.choice([g for g in (1, 2, 3, 4) if channels % g == 0]))
    net.conv(
        groups * int(rng.integers(1, 4)), kernel, stride=tuple(rng.integers(1, 3, 2).tolist()),
        padding=padding, dilation=dilation, groups=groups, bias=bool(rng.integers(2)),
    )  # fmt: skip
    _random_requantize(net)


def _picture_step(net: Net) -> None:
    rng = net.rng
    start, (channels, height, width) = net.head, net.shape
    match int(rng.integers(6)):
        case 0 | 1:
            _conv_step(net)
        case 2:
            kernel = (min(2, height), min(3, width))
            padding = (int(rng.integers(2)) * (kernel[0] // 2), kernel[1] // 2)
            net.max_pool(kernel, (int(rng.integers(1, 3)), 2), padding)
        case 3:
            net.sum_pool((min(2, height), min(2, width)), (1, 2), (1, int(rng.integers(2))))
            _random_requantize(net)
        case 4:
            net.conv(channels, (1, 1))
            _random_requantize(net)
            net.add(net.head, start, tuple(rng.integers(-4, 5, 2).tolist()))
            _random_requantize(net)
        case 5:
            net.transpose(0, 2, 1)
            last = int(rng.integers(1, width + 1))
            part = net.slice(1, 0, last)
            net.concat(1, part, part)


def _row_step(net: Net) -> None:
    rng = net.rng
    start = net.head
    match int(rng.integers(5)) if len(net.shape) == 2 else 0:
        case 0 | 1:
            net.linear(int(rng.integers(2, 12)), bias=bool(rng.integers(2)))
        case 2:
            net.matmul(start, start, transpose_b=True)
        case 3:
            net.reduce_max()
            net.add(start, net.head, (1, -1))
        case 4:
            net.reduce_sum()
            net.mul(start, _random_requantize(net))
    _random_requantize(net)
