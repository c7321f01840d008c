"""Quantization-aware training: a short fine-tune that rounds in every step as the integers will.

BatchNorm is folded first and so keeps its statistics: in a short fine-tune they hardly move, and
the weights that are rounded are then the ones that will be stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import FakeQuantize
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from secure_quant.errors import CalibrationError, ConfigError, NotFinite
from secure_quant.quantizer.annotate import IntegerQuantizer
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.devices import OnCpu
from secure_quant.quantizer.gate import Gate
from secure_quant.quantizer.observers import RangeObserver, WeightObserver
from secure_quant.quantizer.passes import rewrite, specialize
from secure_quant.quantizer.pipeline import (
    OUTPUT_GRID,
    Progress,
    Settings,
    Simulated,
    copied,
    silent,
)
from secure_quant.quantizer.refuse import failures_named, first_line

__all__ = ["Training", "trained_model"]

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """The fine-tune: Adam with a falling learning rate. In the last third of the steps the
    activation ranges stand still.

    epochs         over all calibration samples.
    batch_size     samples of a step.
    learning_rate  at first.
    loss           (float outputs, targets) -> a scalar to make small; of several outputs a dict of
                   them comes first.
    seed           of the order of samples.
    """

    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 2e-4
    loss: Loss = nn.functional.cross_entropy
    seed: int = 0


_FADING = 0.05
"""Of the range of a batch of 64 or more, what it moves the range that is used."""


class MovingRangeObserver(RangeObserver):
    """Range of the recent batches, once it is ``moving``: weights move, so old ranges must fade.
    Before that, of all batches."""

    moving = False

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach()
        if not torch.isfinite(values).all():
            raise NotFinite(
                "activations in training", got="NaN or infinity", expected="finite numbers",
                hint="lower training.learning_rate",
            )  # fmt: skip
        self.seen = True
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        if self.moving:
            share = _FADING * min(len(values) / 64, 1.0)  # few samples show little of the range
            self.low += share * (low - self.low)
            self.high += share * (high - self.high)
        else:
            self.low, self.high = min(low, self.low), max(high, self.high)
        self.counts[0] = 1.0
        return x


def trained_model(
    model: nn.Module,
    gate: Gate,
    inputs: Tensor,
    targets: Tensor,
    settings: Settings,
    training: Training,
    progress: Progress = silent,
) -> Simulated:
    """torch's converted model after the fine-tune; its ``floats`` have the trained weights.

    inputs float32[n, *input shape], targets [n, ...] as the loss takes them. Raises as
    ``quantize``.
    """
    if targets.ndim == 0 or len(inputs) != len(targets):
        got = f"{len(targets) if targets.ndim else 'one number'} for {len(inputs)} inputs"
        raise CalibrationError("targets", got=got, expected="as many as inputs")
    _check_options(training)
    example = torch.cat([inputs[:1]] * 2)
    progress("capture", 0, 1)
    with failures_named(f"capturing {type(model).__name__}"):
        module = rewrite(capture(model, example))
    gate.check(module)
    with failures_named(f"rewriting {type(model).__name__}"):
        specialize(module, torch.split(inputs, training.batch_size))
        prepared = prepare_qat_pt2e(module, _quantizer(settings))
    gate.check(prepared, typical=True)
    parameters = list(prepared.parameters())
    if not parameters:
        raise ConfigError(
            "qat", got="a model without weights", expected="weights to train", hint="mode='static'"
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise ConfigError(
            f"training of {type(model).__name__}", got="no parameter that may change",
            expected="one with requires_grad", hint='mode="static" needs no training',
        )  # fmt: skip
    _watch(prepared, inputs, training.batch_size)
    _train(prepared, inputs, targets, training, progress)
    progress("convert", 0, 1)
    floats = copied(prepared)
    with failures_named(f"converting {type(model).__name__}"):
        return Simulated(convert_pt2e(prepared), example, floats)


def _check_options(training: object) -> None:
    """Raise ConfigError for options that no training can be made with."""
    if not isinstance(training, Training):
        raise ConfigError("training", got=type(training).__name__, expected="Training(...)")
    counts = {"epochs": training.epochs, "batch_size": training.batch_size}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"training.{name}", got=count, expected="a whole number >= 1")
    if not 0 < training.learning_rate < float("inf"):
        raise ConfigError("training.learning_rate", got=training.learning_rate, expected="> 0")
    if not callable(training.loss):
        raise ConfigError(
            "training.loss", got=type(training.loss).__name__,
            expected="a function of outputs and targets",
        )  # fmt: skip


def _quantizer(settings: Settings) -> IntegerQuantizer:
    def fake(observer: Any, **options: Any) -> Any:
        return FakeQuantize.with_args(observer=observer, **options)

    return IntegerQuantizer(
        activation=fake(MovingRangeObserver),
        weight=fake(WeightObserver, grid=settings.grid),
        output_weight=fake(WeightObserver, grid=settings.grid or OUTPUT_GRID),
    )


def _train(
    prepared: GraphModule, inputs: Tensor, targets: Tensor, training: Training, progress: Progress
) -> None:
    generator = torch.Generator().manual_seed(training.seed)
    steps = -(-len(inputs) // training.batch_size) * training.epochs
    optimizer = torch.optim.Adam(prepared.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = 0
    for _ in range(training.epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for chosen in torch.split(order, training.batch_size):
            progress("train", step, steps)
            if step == 2 * steps // 3:
                _freeze(prepared)
            optimizer.zero_grad()
            _loss(training.loss, prepared(inputs[chosen]), targets[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
    if not all(bool(torch.isfinite(p).all()) for p in prepared.parameters()):
        raise NotFinite(
            "parameters after training", got="NaN or infinity", expected="finite numbers",
            hint="lower training.learning_rate",
        )  # fmt: skip


def _watch(prepared: GraphModule, inputs: Tensor, batch_size: int) -> None:
    """Ranges of the float model, so that the first step rounds on them and none starts from
    nothing."""
    rounding = [m for m in prepared.modules() if isinstance(m, FakeQuantize)]
    for module in rounding:
        module.disable_fake_quant()
    with torch.no_grad():
        for batch in torch.split(inputs, batch_size):
            prepared(batch)
    for module in rounding:
        module.enable_fake_quant()
        module.activation_post_process.moving = True


def _loss(function: Loss, made: Tensor, wanted: Tensor) -> Tensor:
    """The loss of a step. Raises CalibrationError, NotFinite."""
    try:
        with OnCpu():  # of the loss's own tensors
            value = function(made, wanted)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise TypeError("the loss is no number with a gradient")
    except Exception as error:
        raise CalibrationError(
            "the loss of a training step", got=first_line(error),
            expected=f"a number from outputs {list(made.shape)} and targets {list(wanted.shape)} "
            f"of {wanted.dtype}",
            hint="give targets as training.loss takes them",
        ) from error  # fmt: skip
    if not bool(torch.isfinite(value)):
        raise NotFinite(
            "the loss of a training step", got="NaN or infinity", expected="a finite number",
            hint="look at the targets, or lower training.learning_rate",
        )  # fmt: skip
    return value


def _freeze(prepared: GraphModule) -> None:
    """Activation ranges stay as they are; weights go on."""
    for module in prepared.modules():
        if not isinstance(module, FakeQuantize):
            continue
        if isinstance(module.activation_post_process, RangeObserver):
            module.observer_enabled[0] = 0
