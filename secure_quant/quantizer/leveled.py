"""Linear, Square, Linear …: a float torch model -> layers with int8 weights.

The quantizer knows no engine, so it hands over plain layers; ``secure_quant.he.leveled`` makes the
model of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secure_quant.errors import CalibrationError, UnsupportedModule
from secure_quant.quantizer.gate import Bounds, Gate, judge, relative_error
from secure_quant.quantizer.pipeline import split_batches

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


def quantize_leveled(
    model: nn.Module, calibration: Any, max_error: float | None = None
) -> QuantizedLayers:
    """Per-channel symmetric int8 weights of an ``nn.Sequential`` of Linear and Square in turn, with
    Flatten, Dropout and Identity wherever they like; the input bound from ``calibration``.
    ``max_error`` as in ``quantize``.

    The layers are compared with ``model`` itself, before and after they are rounded. Warns with
    AccuracyWarning; raises UnsupportedModule (with its path), CaptureMismatch, AccuracyLoss,
    CalibrationError, ConfigError.
    """
    bounds = Bounds.of(max_error)
    data = np.asarray(calibration, np.float64)
    bound = float(np.abs(data).max(initial=0.0))
    if not (data.size and np.isfinite(bound) and bound > 0):
        raise CalibrationError("calibration", got="no finite, nonzero values", expected="inputs")
    found: list[nn.Linear] = []
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
            found.append(module)
        expected = Square if expected is nn.Linear else nn.Linear
    if expected is nn.Linear:
        raise UnsupportedModule("end of a leveled model", got="Square or nothing",
                                expected="Linear")  # fmt: skip
    layers = tuple(_quantized(layer) for layer in found)
    gate = Gate(model, split_batches(data, 64))
    gate.check_function(lambda x: _evaluated([_exact(layer) for layer in found], x))
    x = gate.samples.double()
    want, got = (_evaluated(each, x).numpy() for each in ([_exact(m) for m in found], layers))
    judge(relative_error(got, want), bounds)
    return QuantizedLayers(layers, bound)


def _exact(layer: nn.Linear) -> tuple[Any, Any, Any]:
    """Weight, scale and bias as they are, float64."""
    weight = layer.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().numpy()
    return weight, np.ones(len(weight)), bias


def _evaluated(layers: Sequence[tuple[Any, Any, Any]], x: Tensor) -> Tensor:
    """What the model file means, in float64: [n, ...] -> [n, out]."""
    y = x.double().flatten(1).numpy()
    for number, (weight, scale, bias) in enumerate(layers):
        y = (y * y if number else y) @ (weight.astype(np.float64) * scale[:, None]).T + bias
    return torch.from_numpy(y)


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
