"""``quantize``: a float module and calibration data -> the integer graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from secure_quant.errors import CalibrationError, ConfigError
from secure_quant.ir import Graph
from secure_quant.quantize.annotate import IntegerQuantizer
from secure_quant.quantize.capture import capture, check_calibration
from secure_quant.quantize.lower import lower
from secure_quant.quantize.observers import Calibrator, RangeObserver, WeightObserver
from secure_quant.quantize.schemes import Scheme, make_scheme

__all__ = ["quantize"]

OUTPUT_GRID = 64
"""Multipliers of the last layer, which the client applies."""

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, steps done and steps in all."""


def quantize(
    model: nn.Module,
    calibration: Any,
    *,
    mode: str = "static",
    scheme: str | Scheme = "uniform",
    calibrator: Calibrator = "minmax",
    grid: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Graph:
    """The integer graph of ``model``.

    model        a torch module: one float32[batch, ...] tensor in, one tensor out.
    calibration  float[n, *input shape] array or tensor of typical inputs, or an iterable of such
                 batches. Some hundred samples do.
    scheme       how weights are rounded: uniform, log, clip, kmeans or a ``Scheme``.
    calibrator   how activation ranges are chosen; see ``RangeObserver``.
    grid         largest integer multiplier of a weight channel; see ``WeightObserver``.

    Raises UnsupportedModule (with the op, the module's path and a hint), CalibrationError,
    ConfigError, OverflowRisk.
    """
    if mode != "static":
        raise ConfigError("mode", got=mode, expected="static")
    chosen = make_scheme(scheme)
    batches = split_batches(calibration, batch_size)
    example = torch.cat([batches[0][:1]] * 2)
    tell = progress or _silent
    tell("capture", 0, 1)
    module = capture(model, example)
    quantizer = IntegerQuantizer(
        activation=RangeObserver.with_args(calibrator=calibrator),
        weight=WeightObserver.with_args(grid=grid),
        output_weight=WeightObserver.with_args(grid=grid or OUTPUT_GRID),
    )
    prepared = prepare_pt2e(module, quantizer)
    tell("weights", 0, 1)
    apply_scheme(prepared, chosen)
    with torch.no_grad():
        for done, batch in enumerate(batches):
            tell("calibrate", done, len(batches))
            prepared(batch)
    tell("convert", 0, 1)
    converted = convert_pt2e(prepared)
    return lower(converted, example)


def apply_scheme(prepared: GraphModule, scheme: Scheme) -> None:
    """Put each weight on its integers at once, so that calibration sees the weights it gets."""
    for node in prepared.graph.nodes:
        if node.op != "call_module":
            continue
        observer = prepared.get_submodule(str(node.target))
        source = node.args[0]
        if not isinstance(observer, WeightObserver) or not isinstance(source, Node):
            continue
        owner, _, name = str(source.target).rpartition(".")
        parameter: Any = getattr(prepared.get_submodule(owner), name)
        q, scale = scheme.quantize(parameter, observer.grid)
        observer.fix(scale)
        made = (q * scale.double()[:, None]).reshape(parameter.shape)
        with torch.no_grad():
            parameter.copy_(made)


def _silent(stage: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def split_batches(calibration: Any, batch_size: int) -> list[Tensor]:
    """Calibration data as float32 batches of at most ``batch_size``. Raises CalibrationError."""
    if isinstance(calibration, Tensor) or hasattr(calibration, "__array__"):
        sources: Iterable[Any] = [calibration]
    elif isinstance(calibration, Iterable):
        sources = calibration
    else:
        raise CalibrationError(
            "calibration", got=type(calibration).__name__, expected="an array or batches of arrays"
        )
    batches = [b for x in sources for b in torch.split(check_calibration(x), batch_size)]
    if not batches:
        raise CalibrationError("calibration", got="no data", expected="at least one sample")
    if len({b.shape[1:] for b in batches}) != 1:
        shapes = sorted({tuple(b.shape[1:]) for b in batches})[:3]
        raise CalibrationError("calibration shapes", got=shapes, expected="one shape")
    return batches
