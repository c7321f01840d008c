"""The graphs and inputs that every executor must answer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from conformance.builder import Net
from conformance.order_cases import ORDERS
from conformance.port_cases import one_port_each, ports, secret_tables
from conformance.random_nets import SALT, any_table, random_graph
from conformance.sum_cases import SUMS
from secure_quant.ir import Graph


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], Graph]
    batch: int = 2

    def __repr__(self) -> str:
        return self.name

    @cached_property
    def graph(self) -> Graph:
        return self.build()

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """Extreme and random int8 batches of the graph's input."""
        rng = np.random.default_rng(len(self.name))
        shape = (self.batch, *self.graph.input.shape)
        extremes = np.where(rng.integers(0, 2, shape), 127, -128)
        return {
            "random": rng.integers(-128, 128, shape).astype(np.int8),
            "lowest": np.full(shape, -128, np.int8),
            "highest": np.full(shape, 127, np.int8),
            "mixed extremes": extremes.astype(np.int8),
        }


def _clamp(low: int, high: int, entries: int = 256) -> tuple[int, ...]:
    return tuple(np.clip(np.arange(entries) + low, low, high).tolist())


def linear() -> Graph:
    net = Net(1, (8,))
    net.linear(32)
    return net.done(salt=SALT, per_channel=True)


def linear_rows() -> Graph:
    net = Net(2, (5, 12), zero_point=-3)
    net.linear(7, bias=False)
    net.requantize(zero_point=5)
    net.linear(3)
    return net.done(salt=SALT)


def mlp() -> Graph:
    net = Net(3, (16,), zero_point=-128)
    for width in (24, 12):
        net.linear(width)
        net.requantize(_clamp(-128, 127), zero_point=-128)
    net.linear(10)
    return net.done(salt=SALT, per_channel=True)


def lenet() -> Graph:
    net = Net(4, (3, 32, 32))
    for channels in (6, 16):
        net.conv(channels, (5, 5))
        net.requantize(_clamp(-128, 127), zero_point=-128)
        net.max_pool((2, 2), (2, 2))
    net.flatten()
    for width in (120, 84):
        net.linear(width)
        net.requantize(_clamp(-128, 127), zero_point=-128)
    net.linear(10)
    return net.done(salt=SALT, per_channel=True)


def deep_conv() -> Graph:
    """Every parameter of a convolution once: asymmetric, strided, padded, dilated, grouped."""
    net = Net(5, (4, 9, 7), zero_point=9)
    net.conv(6, (3, 2), stride=(2, 1), padding=(1, 1))
    net.requantize(zero_point=-7)
    net.conv(6, (1, 3), dilation=(1, 2), padding=(0, 2), groups=3, bias=False)
    net.requantize(zero_point=3)
    net.conv(6, (3, 3), padding=(1, 1), groups=6)
    net.requantize()
    net.conv(5, (1, 1), stride=(2, 3))
    return net.done(salt=SALT, per_channel=True, axis=0)


def conv_one_pixel() -> Graph:
    """A window as large as the picture, and windows that lie wholly in the padding."""
    net = Net(6, (2, 3, 3))
    net.conv(4, (3, 3), padding=(3, 0), stride=(3, 1))
    net.requantize()
    net.conv(3, (3, 1))
    return net.done(salt=SALT)


def pools() -> Graph:
    net = Net(7, (3, 9, 10), zero_point=4)
    net.max_pool((3, 2), (2, 3), (1, 1))
    net.conv(4, (1, 1))
    net.requantize(zero_point=-20)
    net.sum_pool((2, 2), (1, 2), (1, 0))
    net.requantize(zero_point=6)
    net.max_pool((2, 2), (1, 1))
    return net.done(salt=SALT)


def global_average() -> Graph:
    net = Net(8, (4, 5, 6))
    net.conv(6, (3, 3), padding=(1, 1))
    net.requantize(_clamp(0, 127))
    net.sum_pool((5, 6), (1, 1))
    net.requantize(per_channel=False, sharper=0)
    net.flatten()
    net.linear(4)
    return net.done(salt=SALT)


def residual() -> Graph:
    """One value read three times, added with factors, then once more with itself."""
    net = Net(9, (4, 6, 6))
    net.conv(4, (3, 3), padding=(1, 1))
    start = net.requantize(zero_point=-5)
    net.conv(4, (3, 3), padding=(1, 1))
    side = net.requantize(zero_point=11)
    net.add(start, side, (3, -2))
    top = net.requantize()
    net.add(top, top, (1, 1))
    doubled = net.requantize(zero_point=1)
    net.mul(doubled, start)
    net.requantize()
    net.conv(2, (2, 2), stride=(2, 2))
    return net.done(salt=SALT, per_channel=True, axis=0)


def saturating() -> Graph:
    """Tables far finer than the range: nearly every value is clipped, on one side or the other."""
    net = Net(10, (10,))
    net.linear(16)
    net.requantize(sharper=8, per_channel=False)
    net.linear(8)
    net.requantize(sharper=6)
    return net.done(salt=SALT)


def nothing_saturates() -> Graph:
    net = Net(11, (10,))
    net.linear(9)
    net.requantize(sharper=-1, entries=512)
    net.linear(3)
    return net.done(salt=SALT)


def odd_tables() -> Graph:
    """Tables of 2, of 300 entries in no order, and of 1000 that need int16."""
    net = Net(12, (9,))
    net.linear(11)
    net.requantize((-100, 100), zero_point=-1)
    net.linear(11)
    net.requantize(any_table(1, 300, 128 - 1))
    net.linear(6, largest=20)
    net.requantize(any_table(2, 1000, 900), zero_point=-30)
    net.linear(4, largest=20)
    return net.done(salt=SALT)


def requantize_activation() -> Graph:
    """A table on an activation (its acc is x̂): a change of scale, then a nonlinearity."""
    net = Net(13, (6, 5), zero_point=17)
    net.requantize(any_table(3, 256, 127), zero_point=2, axis=0)
    net.linear(5)
    net.requantize()
    net.requantize(_clamp(-64, 63, 128), sharper=2, per_channel=False)
    return net.done(salt=SALT)


def shapes() -> Graph:
    """The ops that only move integers, one after the other and joined."""
    net = Net(14, (4, 6, 5), zero_point=-6)
    left = net.slice(0, 0, 2)
    right = net.at("x").slice(0, 1, 4, 2)
    both = net.concat(0, right, left)
    net.transpose(1, 0, 2)
    net.reshape(4, 6, 5)
    turned = net.slice(2, 0, 5, 1)
    net.add(both, turned)
    net.requantize()
    net.transpose(2, 0, 1)
    net.reshape(10, 12)
    net.linear(4)
    return net.done(salt=SALT)


def gathers() -> Graph:
    """Places along an axis: in another order, left out, repeated."""
    net = Net(16, (3, 5, 4), zero_point=7)
    net.gather(1, 4, 3, 3, 0)
    net.gather(2, 1, 0, 3, 2, 1)
    net.conv(2, (2, 3))
    net.requantize()
    net.gather(0, 1, 0, 1)
    net.reshape(27)
    net.gather(0, *range(26, -1, -2))
    net.linear(3)
    return net.done(salt=SALT)


def output_activation() -> Graph:
    net = Net(15, (2, 6, 6))
    net.conv(3, (3, 3))
    net.requantize(zero_point=40)
    net.max_pool((2, 2), (2, 2))
    return net.done(salt=SALT)


def moves_only() -> Graph:
    """No secret parameter at all."""
    net = Net(16, (3, 4))
    net.transpose(1, 0)
    net.reduce_max()
    return net.done(salt=SALT)


def softmax() -> Graph:
    """exp(x - max x) / Σ as integers: maximum, table, sum, table of the reciprocal, product."""
    net = Net(17, (3, 8))
    net.linear(8)
    x = net.requantize(zero_point=3)
    top = net.reduce_max()
    net.add(x, top, (1, -1))
    exp = np.rint(127 * np.exp(np.arange(-255, 1) / 24)).astype(int)
    net.requantize(tuple(exp.tolist()), per_channel=False, sharper=0)
    e = net.head
    net.reduce_sum()
    reciprocal = np.rint(127 * 32 / np.maximum(np.arange(256), 32)).astype(int)
    r = net.requantize(tuple(reciprocal.tolist()), per_channel=False)
    net.mul(e, r)
    net.requantize()
    return net.done(salt=SALT)


def attention() -> Graph:
    """One head over 6 tokens: Q, K, V, scores, a table in place of softmax, context, residual."""
    net = Net(18, (6, 8), zero_point=-2)
    heads = []
    for _ in range(3):
        net.at("x").linear(8)
        heads.append(net.requantize(zero_point=int(net.rng.integers(-9, 9))))
    q, k, v = heads
    net.matmul(q, k, transpose_b=True)
    scores = net.requantize(_clamp(0, 127), per_channel=False)
    net.matmul(scores, v)
    context = net.requantize()
    net.add(context, "x", (2, 1))
    net.requantize()
    net.linear(4)
    return net.done(salt=SALT, per_channel=True)


def two_heads() -> Graph:
    net = Net(19, (4, 6))
    net.linear(12)
    net.requantize()
    net.reshape(4, 2, 2, 3)
    both = net.transpose(2, 1, 0, 3)
    q = net.slice(0, 0, 1)
    k = net.at(both).slice(0, 1, 2)
    net.matmul(q, k, transpose_b=True)
    net.requantize(per_channel=False)
    net.reshape(2, 4, 4)
    return net.done(salt=SALT)


def zero_weights() -> Graph:
    """Layers whose answer is their bias, or nothing at all."""
    net = Net(20, (3, 4, 4), zero_point=1)
    net.conv(2, (3, 3), largest=0)
    net.requantize()
    net.flatten()
    net.linear(5, largest=0, bias=False)
    net.requantize()
    net.linear(3)
    return net.done(salt=SALT)


def extreme_weights() -> Graph:
    """Every weight -128: with the extreme inputs each accumulator stands at its bound."""
    net = Net(21, (4, 5, 5), zero_point=-128)
    net.conv(3, (3, 3), padding=(1, 1), largest=-128)
    net.requantize(zero_point=127)
    net.flatten()
    net.linear(6, largest=-128)
    net.requantize(zero_point=-128)
    net.linear(2, largest=-128)
    return net.done(salt=SALT, per_channel=True)


def wide() -> Graph:
    """Layers that no engine holds in one piece."""
    net = Net(22, (700,))
    net.linear(90)
    net.requantize()
    net.linear(300)
    net.requantize()
    net.linear(1)
    return net.done(salt=SALT)


def large_picture() -> Graph:
    net = Net(23, (2, 41, 37), zero_point=-9)
    net.conv(5, (5, 3), stride=(2, 1), padding=(2, 1))
    net.requantize()
    net.conv(5, (7, 7), stride=(3, 2), groups=5)
    return net.done(salt=SALT, per_channel=True, axis=0)


def run_time_scales() -> Graph:
    """Conv2d and Linear between run-time scales: with and without ReLU, saturation and bias."""
    net = Net(61, (2, 6, 6), zero_point=7)
    net.conv(3, (3, 3), padding=(1, 1))
    net.rescale(6, low=0, high=2**24 - 1)
    factor = net.run_time(relu=True)
    net.max_pool((2, 2), (2, 2))
    net.conv(4, (2, 2), bias=False)
    net.rescale(22, factor, low=-900, high=2**20)
    factor = net.run_time()
    net.flatten()
    net.linear(5, bias=False)
    net.rescale(0, factor, low=-(2**31) + 1, high=2**31 - 1, bias=False)
    return net.done(salt=SALT)


def run_time_scale_of_int16() -> Graph:
    """Rows of int16 activations, one scale a sample; the accumulator enters a table."""
    net = Net(62, (4, 6))
    net.linear(5)
    net.requantize(any_table(9, 600, 3000), zero_point=-11)
    factor = net.run_time()
    net.linear(3, bias=False)
    net.rescale(18, factor, low=-(2**20), high=2**20)
    net.requantize(entries=512)
    return net.done(salt=SALT)


NAMED: tuple[Callable[[], Graph], ...] = (
    linear, linear_rows, mlp, deep_conv, conv_one_pixel, pools, global_average, residual,
    saturating, nothing_saturates, odd_tables, requantize_activation, shapes, output_activation,
    moves_only, softmax, attention, two_heads, zero_weights, extreme_weights, wide, large_picture,
    lenet, *SUMS, run_time_scales, run_time_scale_of_int16, ports,
    one_port_each, gathers, secret_tables, *ORDERS,
)  # fmt: skip


def all_cases(seeds: int = 24) -> Iterator[Case]:
    for place, build in enumerate(NAMED):
        yield Case(build.__name__, build, batch=1 + place % 4)
    for seed in range(seeds):
        yield Case(f"random{seed}", lambda seed=seed: random_graph(seed), batch=1 + seed % 8)
