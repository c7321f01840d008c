"""Linear, Square, Linear …: a float torch model -> layers with int8 weights.

The quantizer knows no engine, so it hands over plain layers; ``secure_quant.he.leveled`` makes the
model of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secure_quant.errors import CalibrationError, UnsupportedModule

__all__ = ["QuantizedLayers", "Square", "quantize_leveled"]


_Layer = tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]


class Square(nn.Module):
    """x -> x·x, the activation of leveled models."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


class QuantizedLayers(NamedTuple):
    """layers: (weight int8[out, in], scale float64[out], bias float64[out]) of each Linear.
    input_bound: largest magnitude of an input; larger ones are clipped."""

    layers: tuple[_Layer, ...]
    input_bound: float


def quantize_leveled(model: nn.Module, calibration: Any) -> QuantizedLayers:
    """Per-channel symmetric int8 weights of an ``nn.Sequential`` of Linear and Square in turn, with
    Flatten, Dropout and Identity wherever they like; the input bound from ``calibration``.

    Raises UnsupportedModule (with its path), CalibrationError.
    """
    data = np.asarray(calibration, np.float64)
    bound = float(np.abs(data).max(initial=0.0))
    if not (data.size and np.isfinite(bound) and bound > 0):
        raise CalibrationError("calibration", got="no finite, nonzero values", expected="inputs")
    layers: list[_Layer] = []
    expected: type[nn.Module] = nn.Linear
    for path, module in _flat(model, ""):
        if isinstance(module, nn.Flatten | nn.Dropout | nn.Identity):
            continue
        if not isinstance(module, expected):
            raise UnsupportedModule(
                f"{path or 'the model'} of a leveled model", got=_full_name(type(module)),
                expected=_full_name(expected),
                hint="Linear and Square in turn, Linear at both ends",
            )  # fmt: skip
        if isinstance(module, nn.Linear):
            layers.append(_quantized(module))
        expected = Square if expected is nn.Linear else nn.Linear
    if expected is nn.Linear:
        raise UnsupportedModule("end of a leveled model", got="Square or nothing",
                                expected="Linear")  # fmt: skip
    return QuantizedLayers(tuple(layers), bound)


def _full_name(kind: type[nn.Module]) -> str:
    """With the module it is defined in: a class of one's own may have the same name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _flat(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    if not isinstance(module, nn.Sequential):
        return [(path, module)]
    children = module.named_children()
    return [each for name, child in children for each in _flat(child, f"{path}.{name}".strip("."))]


def _quantized(layer: nn.Linear) -> _Layer:
    weight = layer.weight.detach().numpy().astype(np.float64)
    largest = np.abs(weight).max(axis=1)
    scale = np.where(largest > 0, largest, 127.0) / 127
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy()
    return np.rint(weight / scale[:, None]).astype(np.int8), scale, bias.astype(np.float64)
