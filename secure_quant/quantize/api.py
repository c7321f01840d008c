"""``quantize``: a float module and calibration data -> the integer graph."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from secure_quant.errors import ConfigError
from secure_quant.ir import Graph
from secure_quant.quantize.lower import lower
from secure_quant.quantize.observers import Calibrator
from secure_quant.quantize.pipeline import (
    Progress,
    Settings,
    converted_model,
    silent,
    split_batches,
)
from secure_quant.quantize.schemes import Scheme, make_scheme

__all__ = ["Mode", "quantize"]

Mode = Literal["static", "weight-only"]
WEIGHT_ONLY_BITS = 12


def quantize(
    model: nn.Module,
    calibration: Any,
    *,
    mode: Mode = "static",
    scheme: str | Scheme = "uniform",
    calibrator: Calibrator = "minmax",
    grid: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Graph:
    """The integer graph of ``model``.

    model        a torch module: one float32[batch, ...] tensor in, one tensor out. It is copied
                 and taken in eval mode.
    calibration  float[n, *input shape] array or tensor of typical inputs, or an iterable of such
                 batches. Some hundred samples do.
    mode         static: int8 weights and activations. weight-only: int8 weights; activations get
                 12 bits, so that next to nothing but the weights' rounding is felt, and encrypted
                 engines still run it, at a higher cost. The input itself is int8 in every mode.
    scheme       how weights are rounded: uniform, log, clip, kmeans or a ``Scheme``.
    calibrator   how activation ranges are chosen; see ``RangeObserver``.
    grid         largest integer multiplier of a weight channel, 0 to choose; see
                 ``WeightObserver``.
    progress     called with (stage, steps done, steps in all).

    Raises UnsupportedModule (with the op, the module's path and a hint), CalibrationError,
    ConfigError, OverflowRisk.
    """
    if mode not in get_args(Mode):
        raise ConfigError("mode", got=mode, expected=" or ".join(get_args(Mode)))
    bits = WEIGHT_ONLY_BITS if mode == "weight-only" else 8
    settings = Settings(make_scheme(scheme), calibrator, grid, bits)
    batches = split_batches(calibration, batch_size)
    converted, example = converted_model(model, batches, settings, progress or silent)
    return lower(converted, example, fine=mode == "weight-only")
