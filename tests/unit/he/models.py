"""Small graphs with random parameters, built by hand, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from secure_quant.ir import Graph, Interval, ops
from secure_quant.ir.verify import linear_bound, public_bound


def bounded(weight: np.ndarray, bias: np.ndarray, x: Interval) -> int:
    return public_bound(linear_bound(weight, bias, x))


def one_layer(node: Any, shape: tuple[int, ...], weight: np.ndarray, zero_point: int = 0) -> Graph:
    """Input -> node -> Output; ``node`` maps a bound to the op."""
    bias = np.random.default_rng(7).integers(-5000, 5000, len(weight)).astype(np.int32)
    bound = bounded(weight, bias, Interval(-128 - zero_point, 127 - zero_point))
    return Graph(
        (
            ops.Input(name="x", shape=shape, scale=1.0, zero_point=zero_point),
            node(bound),
            ops.Output(name="y", inputs=("layer",), scale=1.0),
        ),
        {"layer.weight": weight, "layer.bias": bias},
    )


def linear(
    fan_in: int, out: int, *, lead: tuple[int, ...] = (), seed: int = 0, weight: Any = None
) -> Graph:
    rng = np.random.default_rng(seed)
    if weight is None:
        weight = rng.integers(-127, 128, (out, fan_in))

    def node(bound: int) -> ops.Linear:
        return ops.Linear(
            name="layer", inputs=("x",), in_features=fan_in, out_features=out, bias=True,
            bound=bound, scale=1.0,
        )  # fmt: skip

    return one_layer(node, (*lead, fan_in), np.asarray(weight, np.int8), zero_point=3)


def conv(
    channels: int,
    out: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    seed: int = 0,
) -> Graph:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (out, channels // groups, *kernel)).astype(np.int8)

    def node(bound: int) -> ops.Conv2d:
        return ops.Conv2d(
            name="layer", inputs=("x",), in_channels=channels, out_channels=out, kernel=kernel,
            stride=stride, padding=padding, dilation=dilation, groups=groups, bias=True,
            bound=bound, scale=1.0,
        )  # fmt: skip

    return one_layer(node, (channels, *size), weight, zero_point=-4)


def lenet(seed: int = 0) -> Graph:
    """The classic net for 28x28 digits with uniform random int8 weights."""
    rng = np.random.default_rng(seed)
    nodes: list[ops.Node] = [ops.Input(name="x", shape=(1, 28, 28), scale=0.01, zero_point=-5)]
    parameters: dict[str, np.ndarray] = {}
    at, x = "x", Interval(-123, 132)

    def affine(name: str, shape: tuple[int, ...], last: bool = False, padding: int = 0) -> None:
        nonlocal at, x
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        bias = rng.integers(-3000, 3000, shape[0]).astype(np.int32)
        parameters[f"{name}.weight"], parameters[f"{name}.bias"] = weight, bias
        common: dict[str, Any] = {
            "name": name, "inputs": (at,), "bias": True, "bound": bounded(weight, bias, x),
            "scale": 1e-4,
        }  # fmt: skip
        if len(shape) == 4:
            nodes.append(
                ops.Conv2d(
                    in_channels=shape[1],
                    out_channels=shape[0],
                    kernel=(5, 5),
                    stride=(1, 1),
                    padding=(padding, padding),
                    dilation=(1, 1),
                    groups=1,
                    **common,
                )
            )
        else:
            nodes.append(ops.Linear(in_features=shape[1], out_features=shape[0], **common))
        at = name
        if last:
            return
        shift = max(int(np.log2(np.sqrt(weight[0].size) * 70 * 60 * 4 * 16 / 256)), 1)
        table = tuple(np.clip(np.arange(256) - 128, -128, 127).tolist())
        nodes.append(
            ops.Requantize(
                name=f"{name}.q",
                inputs=(name,),
                multiplier=(16,),
                axis=0,
                offset=0,
                shift=shift,
                table=table,
                scale=0.02,
                zero_point=-128,
            )
        )
        at, x = f"{name}.q", Interval(0, 255)

    def pool(name: str) -> None:
        nonlocal at
        nodes.append(
            ops.MaxPool(name=name, inputs=(at,), kernel=(2, 2), stride=(2, 2), padding=(0, 0))
        )
        at = name

    affine("conv1", (6, 1, 5, 5), padding=2)
    pool("pool1")
    affine("conv2", (16, 6, 5, 5))
    pool("pool2")
    nodes.append(ops.Reshape(name="flat", inputs=(at,), shape=(400,)))
    at = "flat"
    affine("fc1", (120, 400))
    affine("fc2", (84, 120))
    affine("fc3", (10, 84), last=True)
    nodes.append(ops.Output(name="y", inputs=(at,), scale=1e-4))
    return Graph(tuple(nodes), parameters)


def centred(graph: Graph, name: str, value: np.ndarray) -> np.ndarray:
    return value.astype(np.int64) - graph.values[name].zero_point


def random_input(graph: Graph, batch: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (batch, *graph.input.shape)).astype(np.int8)
