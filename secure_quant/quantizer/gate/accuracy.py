"""The integers against the float model, and where its values are lost if they are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secure_quant import reference
from secure_quant.errors import AccuracyLoss, ConfigError
from secure_quant.ir import Graph
from secure_quant.ir.ports import Port
from secure_quant.quantizer.gate.steps import held_at_once
from secure_quant.reference.ports import quantize_packed
from secure_quant.reference.units import units

__all__ = [
    "MAX_ERROR",
    "AccuracyWarning",
    "Bounds",
    "check_accuracy",
    "judge",
    "relative_error",
]

MAX_ERROR = 0.25
"""Error at the output, root mean square, relative to the float output's: beyond it no graph is
given, unless the caller says so."""
COARSE = 2
"""Times as much with weights of few levels, which are chosen for their size."""
_WARNED = 0.2
"""Of the usual bound: from there on a graph is given with a warning."""
_JUMP = 2.0
_LEAST = 1e-12
"""Of the largest output: smaller ones are what constants were rounded to."""

Real = NDArray[Any]
Values = Callable[[], Mapping[str, Real]]
"""Node of the graph -> the float value that it stands for, [n, ...]."""


class AccuracyWarning(UserWarning):
    """Integers far off the float model, though no further than the caller allows."""


@dataclass(frozen=True)
class Bounds:
    """Relative errors from which on a graph is given with a warning, or not at all. clipped: some
    samples lie outside the range by the calibrator's choice, and are not counted."""

    warn: float
    refuse: float
    clipped: bool = False

    @staticmethod
    def of(max_error: float | None, *, coarse: bool = False, clipped: bool = False) -> Bounds:
        """The caller's bound, or the usual one for None. Raises ConfigError."""
        usual = MAX_ERROR * (COARSE if coarse else 1)
        number = isinstance(max_error, int | float | np.floating)
        if max_error is not None and not (number and max_error > 0):
            raise ConfigError("max_error", got=max_error, expected="> 0; inf never refuses")
        return Bounds(_WARNED * usual, usual if max_error is None else max_error, clipped)


def relative_error(got: Real, want: Real, floor: float = 0.0, noise: Real | None = None) -> float:
    """Root mean square of got - want over that of want; over ``floor`` where want is zero, or next
    to it and no larger than ``noise``, which float32's rounding makes of it, if measured."""
    error, size, least = (
        math.sqrt(float(np.mean(np.square(part.astype(np.float64)))))
        for part in (got - want.astype(np.float64), want, np.zeros(1) if noise is None else noise)
    )
    if error == 0:
        return 0.0
    if size <= 1e-6 * floor and (noise is None or size <= least):
        size = floor
    return error / size if size else math.inf


def check_accuracy(
    graph: Graph, x: NDArray[np.float32], want: Real, values: Values, bounds: Bounds,
    steps: str | None = None, noise: Real | None = None,
) -> float:  # fmt: skip
    """The relative error of ``graph`` at its output, the largest of several.

    x       float32[n, *input shape]: calibration samples.
    want    what the float model gives for them, [n, ...].
    values  the float model's values at the graph's nodes, asked for only if the error is large.
    steps   what ``steps_off`` found: never given without a word.
    noise   size of what is nothing but float32's own rounding, [...], at each place.

    Warns with AccuracyWarning or raises AccuracyLoss above the bounds.
    """
    q = quantize_packed(graph, x)
    got = reference.named(graph, reference.dequantize(graph, reference.run_int(graph, q)))
    wanted = reference.named(graph, want)
    rounding: Mapping[str, Real] = {}
    if noise is not None:
        rounding = reference.named(graph, np.broadcast_to(noise, want[:1].shape))
    found = [
        _of_output(port, got[port.name], wanted[port.name], rounding.get(port.name), bounds)
        for port in graph.output_ports
    ]
    worst = max(found, key=lambda each: each.error)
    several = f" at output {worst.port.name!r}" if len(found) > 1 else ""
    if worst.error > min(bounds.refuse, bounds.warn):
        made = reference.trace(graph, q[: held_at_once(graph)])
        jump = _jump(graph, made, values())
        where = several + (str(jump) if jump else "") + (f"; {steps}" if steps else "")
        hint = _FAR if jump and jump.before < _LITTLE and jump.after > 1 / 2 else None
        if hint is None and jump and jump.cancels:
            hint = _CANCELS
        if _unlike_inputs(graph, made, x) > worst.error / 2:
            hint = _UNLIKE
        judge(worst.error, bounds, where, hint)
        return worst.error
    seldom = f"though the output is off the float model by {worst.error:.2g} only"
    if steps is not None:
        warnings.warn(f"{steps}, {seldom} ({_RESCALE})", AccuracyWarning, stacklevel=4)
    for each in found:
        if each.lost is not None:
            where = f" at output {each.port.name!r}" if several else ""
            warnings.warn(f"{each.lost}{where}, {seldom} ({_APART})", AccuracyWarning, stacklevel=4)
    return worst.error


class _Found(NamedTuple):
    """Of one output: its error, and what ``_lost`` says."""

    port: Port
    error: float
    lost: str | None


def _of_output(port: Port, got: Real, want: Real, noise: Real | None, bounds: Bounds) -> _Found:
    largest = max(port.multiplier) * port.value.scale * port.value.range.magnitude
    if bounds.clipped:
        kept = _best(got, want)
        got, want = got[kept], want[kept]
    error = relative_error(got, want, largest, noise)
    least = np.zeros(1) if noise is None else noise
    return _Found(port, error, _lost(got, want, least) or _outshone(got, want))


def _unlike_inputs(graph: Graph, made: Mapping[str, Real], x: NDArray[np.float32]) -> float:
    """What the rounding of the input costs a sample, relative to its own size: root mean square
    over samples. 0 for several inputs."""
    q, value = made[graph.input.name], graph.values[graph.input.name]
    x = x[: len(q)]
    if graph.has_ports or q.shape != x.shape:
        return 0.0
    off = ((q - value.zero_point) * float(value.scale) - x).reshape(len(x), -1)
    own = np.sqrt(np.mean(np.square(x.reshape(len(x), -1).astype(np.float64)), 1))
    shares = np.sqrt(np.mean(np.square(off), 1)) / np.maximum(own, 1e-30)
    return float(np.sqrt(np.mean(np.square(np.minimum(shares, 1.0)))))


def judge(error: float, bounds: Bounds, where: str = "", hint: str | None = None) -> None:
    """Warn or raise for a relative error above the bounds."""
    hint = hint or _HINT
    got = f"{error:.2g} of the float output's root mean square{where}"
    if error > bounds.refuse:
        raise AccuracyLoss(
            "the integers against the float model", got=got,
            expected=f"at most {bounds.refuse:g}", hint=hint,
        )  # fmt: skip
    if error > bounds.warn:
        warnings.warn(
            f"the integers are off the float model by {got} ({hint})", AccuracyWarning,
            stacklevel=5,
        )  # fmt: skip


def _best(got: Real, want: Real) -> NDArray[np.int64]:
    """The nine in ten samples with the least error: those that a calibrator clips are not meant to
    be right."""
    errors = ((got.astype(np.float64) - want) ** 2).reshape(len(want), -1).mean(1)
    return np.argsort(errors, kind="stable")[: max(len(errors) * 9 // 10, 1)]


def _lost(got: Real, want: Real, noise: Real) -> str | None:
    """In words, how many places of the output are off by more than half of their own size; None
    for one in sixteen or fewer, and for probabilities, of which the small ones are meant to be.
    Nothing is asked of places that are no larger than ``noise``."""
    if want.min() >= 0 and want.max() <= 1:
        return None
    off, size = (
        np.sqrt((part.astype(np.float64).reshape(len(want), -1) ** 2).mean(0))
        for part in (got - want, want)
    )
    seen = size > np.maximum(noise.reshape(-1), _LEAST * size.max())
    lost = seen & (off > size / 2)
    if 16 * lost.sum() <= seen.sum():
        return None
    return (
        f"{lost.sum()} of {seen.sum()} values of the output are off by more than half of their own "
        f"size, which is up to {size[lost].max() / size.max():.2g} of the largest"
    )


def _outshone(got: Real, want: Real) -> str | None:
    """In words, that the typical sample is off by more than half of its own size, beside a few of
    far larger output, which the error is measured by; None where it is not. Of probabilities
    nothing is asked."""
    if want.min() >= 0 and want.max() <= 1:
        return None
    off, size = (
        np.median(np.sqrt(np.mean(np.square(part.reshape(len(part), -1)), 1)))
        for part in (got - want.astype(np.float64), want.astype(np.float64))
    )
    if off <= size / 2 or not size:
        return None
    return (
        f"half of the samples are off by {off / size:.2g} of their own size or more, which is "
        f"{size / np.abs(want).max():.2g} of the largest output: a few samples are far larger than "
        "the others"
    )


_APART = (
    "outputs, or samples, of very different size share a scale: return outputs in like units, and "
    "leave samples that are not like others out of the data"
)
_RESCALE = "weights or a bias there are far from the size of what they meet: rescale that layer"
_LITTLE = 1e-4
"""Relative error of what nothing but a few huge values make up."""
_FAR = (
    "a number that is far larger than the values beside it, as -1e9 of a mask, takes their scale: "
    "use one a little beyond them"
)
_CANCELS = (
    "a small difference of values that are far larger than it: take off what they have in common "
    "first, of an input before the call, of a variance as ((x - x.mean()) ** 2).mean()"
)
_UNLIKE = (
    "samples of very different size share the scale of the input, and the small ones get few steps "
    "of it: bring each to one size before the call"
)
_HINT = (
    "try calibrator='percentile' or 'mse', mode='weight-only' or 'qat', the uniform scheme; "
    "max_error= (--max-error) sets the bound"
)


class _Jump(NamedTuple):
    """A node, and the relative errors of its inputs and its own."""

    place: str
    before: float
    after: float

    @property
    def cancels(self) -> bool:
        """Whether a sum, or what follows the input, loses what its operands still had."""
        kinds = {part.rstrip("0123456789") for part in self.place.split(".")}
        return self.after > 100 * self.before and bool(kinds & {"sub", "add", "input"})

    def __str__(self) -> str:
        return f"; it jumps at {self.place!r}, from {self.before:.2g} to {self.after:.2g}"


def _jump(graph: Graph, made: Mapping[str, Real], floats: Mapping[str, Real]) -> _Jump | None:
    """The node at which the relative error grows most over that of its inputs."""
    errors: dict[str, float] = {}
    worth = units(graph)
    worst, place = _JUMP, ""
    for node in graph.nodes:
        value = graph.values[node.name]
        before = max((errors[name] for name in node.inputs), default=0.0)
        errors[node.name] = before
        seen = floats.get(node.name)
        factor = worth[node.name]
        if seen is None or factor is None:
            continue
        seen = seen[: len(made[node.name])]
        if seen.size != made[node.name].size:
            continue
        real = (made[node.name] - value.zero_point) * factor
        errors[node.name] = relative_error(real.reshape(seen.shape), seen)
        growth = errors[node.name] / max(before, 0.01)
        if growth > worst and math.isfinite(growth):
            worst, place = growth, node.name
    if not place:
        return None
    before = max((errors[name] for name in graph.by_name[place].inputs), default=0.0)
    return _Jump(place, before, errors[place])
