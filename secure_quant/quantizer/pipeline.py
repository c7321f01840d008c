"""From a float module to torch's converted model: capture, weights, calibration."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from secure_quant.quantizer._torchao import quiet
from secure_quant.quantizer.annotate import IntegerQuantizer
from secure_quant.quantizer.bias import mean_shifts
from secure_quant.quantizer.calibration import split_batches
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.gate import Gate
from secure_quant.quantizer.gate.floatgraph import captured_batch, in_batches
from secure_quant.quantizer.observers import Calibrator, RangeObserver, WeightObserver
from secure_quant.quantizer.passes import rewrite, specialize
from secure_quant.quantizer.refuse import failures_named, place_of
from secure_quant.quantizer.schemes import Scheme, Uniform

__all__ = [
    "Progress",
    "Settings",
    "Simulated",
    "converted_model",
    "copied",
    "make_quantizer",
    "silent",
    "simulated",
    "split_batches",
]

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, steps done and steps in all."""

OUTPUT_GRID = 64
"""Multipliers of the last layer, which the client applies."""


@dataclass(frozen=True)
class Settings:
    """How to quantize; ``quantize`` says what each means."""

    scheme: Scheme = field(default_factory=Uniform)
    calibrator: Calibrator = "minmax"
    grid: int = 0
    activation_bits: int = 8
    sums: bool = True


def silent(stage: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def make_quantizer(settings: Settings) -> IntegerQuantizer:
    """The annotator with observers for ``settings``."""
    return IntegerQuantizer(
        activation=RangeObserver.with_args(calibrator=settings.calibrator),
        weight=WeightObserver.with_args(grid=settings.grid),
        output_weight=WeightObserver.with_args(grid=settings.grid or OUTPUT_GRID),
        bits=settings.activation_bits, sums=settings.sums,
    )  # fmt: skip


def converted_model(
    model: nn.Module,
    batches: Sequence[Tensor],
    settings: Settings | None = None,
    progress: Progress = silent,
) -> tuple[GraphModule, Tensor]:
    """torch's own simulation of the quantized model, and an example input of two samples.

    Raises as ``quantize``.
    """
    with quiet():
        made = simulated(model, Gate(model, batches), batches, settings or Settings(), progress)
    return made.converted, made.example


class Simulated(NamedTuple):
    """converted: torch's simulation, with rounding. example: an input of two samples. floats: the
    graph before rounding, with observers."""

    converted: GraphModule
    example: Tensor
    floats: GraphModule


def simulated(
    model: nn.Module,
    gate: Gate,
    batches: Sequence[Tensor],
    settings: Settings,
    progress: Progress = silent,
) -> Simulated:
    """Capture, compare with the module itself, round the weights, calibrate, convert."""
    example = torch.cat([batches[0][:1]] * 2)
    name = type(model).__name__
    progress("capture", 0, 1)
    with failures_named(f"capturing {name}"):
        module = rewrite(capture(model, example))
    with failures_named(f"comparing {name} with its graph"):
        gate.check(module)
    with failures_named(f"rewriting {name}"):
        specialize(module, batches, settings.activation_bits)
        prepared = prepare_pt2e(module, make_quantizer(settings))
    _name_places(prepared)
    with failures_named(f"comparing {name} with its graph"):
        gate.check(prepared, typical=True)
    floats = copied(prepared)
    progress("weights", 0, 1)
    with failures_named(f"rounding the weights of {name}"):
        apply_scheme(prepared, settings.scheme, batches)
    size = captured_batch(prepared)
    for done, batch in enumerate(batches):
        progress("calibrate", done, len(batches))
        with torch.no_grad(), failures_named(f"calibrating {name}"):
            in_batches(prepared, batch.clone(), size)
    progress("convert", 0, 1)
    with failures_named(f"converting {name}"):
        return Simulated(convert_pt2e(prepared), example, floats)


def _name_places(prepared: GraphModule) -> None:
    """Tell each observer of a range what makes the values that it sees."""
    for node in prepared.graph.nodes:
        seen = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(seen, RangeObserver):
            seen.place = place_of(node.args[0])


def copied(module: GraphModule) -> GraphModule:
    """A deep copy, without what torch warns of while it copies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module)


def apply_scheme(prepared: GraphModule, scheme: Scheme, batches: Sequence[Tensor]) -> None:
    """Put each weight on its integers at once, so that calibration sees the weights it gets, and
    take the mean shift that this makes out of the biases."""
    parameters: list[tuple[Tensor, Tensor]] = []
    rounded: dict[Node, Tensor] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_module":
            continue
        observer = prepared.get_submodule(str(node.target))
        source = node.args[0]
        if not isinstance(observer, WeightObserver) or not isinstance(source, Node):
            continue
        parameter = _parameter(prepared, source)
        q, scale = scheme.quantize(parameter, observer.grid)
        observer.fix(scale)
        made = (q * scale.double()[:, None]).reshape(parameter.shape).to(parameter.dtype)
        parameters.append((parameter, made))
        rounded |= dict.fromkeys(node.users, made)
    for layer, shift in mean_shifts(prepared, rounded, batches).items():
        bias: Any = layer.args[2]
        if len(bias.users) == 1:
            own = _parameter(prepared, bias)
            parameters.append((own, own.detach() - shift))
    with torch.no_grad():
        for parameter, made in parameters:
            parameter.copy_(made)


def _parameter(module: GraphModule, node: Node) -> Any:
    """The tensor behind a get_attr node."""
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)
