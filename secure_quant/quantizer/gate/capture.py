"""The captured and rewritten graph against the user's own module, before anything is rounded.

Both run in float64 where the module can, so that what differs is not the order of sums. Allowed is
1e-5 of the largest value at each place of the output, and what float32 itself costs the user's
module there, several times over: constants were folded in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from secure_quant.errors import CaptureMismatch, SecureQuantError, UnsupportedModule
from secure_quant.ir import Graph
from secure_quant.quantizer.gate.floatgraph import FloatGraph
from secure_quant.quantizer.gate.owner import Owner
from secure_quant.quantizer.gate.places import (
    first_dependent,
    first_difference,
    shared_points_differ,
)
from secure_quant.quantizer.gate.probes import MOST_VALUES, Probe, make_probes, samples_of
from secure_quant.quantizer.opset import OPS
from secure_quant.quantizer.passes.edit import has_free_batch
from secure_quant.quantizer.ports import OutputSpec, largest_of, parts_of
from secure_quant.quantizer.refuse import first_line, unsupported

__all__ = ["Gate"]

RELATIVE = 1e-5
NOISE = 32
"""Times the float32 error of the user's module; its own samples show about a third of the most."""
NOISIEST = 1e-3
"""Of the largest output: the most that is allowed for noise."""
_HIDDEN = (
    "if an input is a mask that may hide every key of a sample, keep one of them: mask[:, 0] shown "
    "in all calibration samples; else write that step with other functions, without writing into "
)
_ALONE = "keep the batch axis first and alone in every step"
_SIZES = (16, 65, 257)
MOST_SAMPLES = 512
MOST_RUN = 2**23
"""Values of all nodes for all samples, at most, that a run of the integer graph holds."""
FLOOR = 1e-7
"""Of the largest output, at places that are small beside it."""
LEFT_OUT = 4e-6
"""The same, of graphs that are made for typical samples: they leave out what weighs less than
exp(-14) in a row of attention."""


@dataclass(frozen=True)
class _Truth:
    """What the user's module gives for a probe, float64[n, ...], and how far float32 takes it from
    that at each place of the output, [...]."""

    probe: Probe
    value: Tensor
    noise: Tensor
    outputs: tuple[OutputSpec, ...] = ()
    """Of several: each is compared beside its own largest value."""

    def excess(self, other: Tensor, floor: float = FLOOR) -> Tensor:
        """Difference over what is allowed, [n, ...]: more than 1 is wrong. Where the module itself
        gives NaN or infinity, nothing is asked."""
        finite = torch.isfinite(self.value)
        size = self.value.abs().where(finite, torch.zeros(()).double())
        largest = largest_of(size, self.outputs)
        noise = torch.minimum(NOISE * self.noise, NOISIEST * largest)
        least = floor * torch.where(largest > 0, largest, torch.full_like(largest, 10.0))
        allowed = RELATIVE * size.amax(0) + noise + least
        off = ((other.double() - self.value).abs() / allowed).nan_to_num(nan=torch.inf)
        return off.where(finite, torch.zeros(()).double())

    def relative(self, other: Tensor) -> str:
        """In words, the largest difference over the largest value."""
        found: list[tuple[float, str]] = []
        for name, part in parts_of(self.value, self.outputs).items():
            finite = torch.isfinite(part)
            off = (parts_of(other.double(), self.outputs)[name] - part)[finite].abs()
            if off.numel():
                worst = off.max() / part[finite].abs().max().clamp(min=1e-30)
                found.append((float(worst.nan_to_num(nan=math.inf)), name))
        share, name = max(found, default=(0.0, ""))
        where = f" {name!r}" if name else ""
        return f"{share:.2g} of the largest output{where} off"


class Gate:
    """Runs the user's module on inputs like ``batches`` and compares graphs with it."""

    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        self._model, self._batches, self._probes = model, batches, make_probes(batches)
        self._comparison: _Comparison | None = None

    @property
    def samples(self) -> Tensor:
        """Calibration samples for further checks: float32[n, *input shape]."""
        return self._probes[0].x

    def samples_for(self, graph: Graph) -> Tensor:
        """More of them, as many as a run of ``graph`` has room for: what is far off on a few
        samples of hundreds is far off."""
        values = sum(math.prod(value.shape) for value in graph.values.values())
        count = min(MOST_RUN // values, MOST_SAMPLES)
        if count <= len(self.samples):
            return self.samples
        return samples_of(self._batches, count)

    @property
    def noise(self) -> Tensor:
        """At each place of the output, what is no more than float32's rounding: float64[...]."""
        if self._comparison is None:
            return torch.zeros(()).double()
        return self._comparison.noise

    def check(self, prepared: GraphModule, *, typical: bool = False) -> None:
        """Compare a graph whose weights are still float; observers see nothing of it. ``typical``:
        on calibration samples alone, for a graph that is made for their like.

        Raises CaptureMismatch, with the first place that differs, and UnsupportedModule for a
        module that does not give one input one result: random in eval mode, with a state that its
        forward changes, or with samples that depend on each other.
        """
        with torch.random.fork_rng(devices=[]):
            if self._comparison is None:
                self._comparison = _Comparison(Owner(self._model), self._probes)
                if not has_free_batch(prepared):
                    self._comparison.refuse_sizes()
            self._comparison.run(prepared, typical)

    def check_function(self, made: Callable[[Tensor], Tensor]) -> None:
        """The same for a function float[n, *input shape] -> float64[n, ...]."""
        with torch.random.fork_rng(devices=[]):
            _Comparison(Owner(self._model), self._probes).outputs(made)


class _Comparison:
    def __init__(self, owner: Owner, probes: Sequence[Probe]) -> None:
        self.owner = owner
        owner.settle(probes[0].x)
        before = owner.state()
        self._truths = tuple(self._truth(probe) for probe in probes)
        self._refuse_changes(before)
        self._refuse_other_results()

    @property
    def noise(self) -> Tensor:
        """Of calibration samples, several times over."""
        return NOISE * self._truths[0].noise

    def run(self, prepared: GraphModule, typical: bool) -> None:
        """Outputs, and the submodules' outputs that the graph has."""
        try:
            self._compare(prepared, typical)
        except CaptureMismatch:
            if not self._settled_for_float32():
                raise
            self._compare(prepared, typical)

    def _settled_for_float32(self) -> bool:
        """Whether the module is another in float64 than the user's, which is in float32: one that
        writes into ``x.to(torch.float32)`` writes into x there alone. It is then taken as it is."""
        typical = self._truths[0]
        largest = typical.value.abs().nan_to_num(0.0, 0.0, 0.0).max()
        if self.owner.dtype is torch.float32 or bool((typical.noise <= NOISIEST * largest).all()):
            return False
        self.owner.dtype = torch.float32
        self._truths = tuple(self._truth(truth.probe) for truth in self._truths)
        return True

    def _compare(self, prepared: GraphModule, typical: bool) -> None:
        truths = [t for t in self._truths if t.probe.typical or not typical]
        graph = FloatGraph(prepared)

        def evaluated(x: Tensor) -> Tensor:
            try:
                return graph.evaluate(x)
            except Exception as error:
                if graph.node is None or graph.node.target in OPS:
                    raise
                raise unsupported(graph.node, first_line(error)) from error

        self.outputs(
            evaluated,
            lambda x: first_difference(self.owner, prepared, x),
            truths,
            LEFT_OUT if typical else FLOOR,
        )
        where = shared_points_differ(self.owner, prepared, [t.probe.x for t in truths])
        if where is not None:
            raise self._mismatch(self._truths[0], where)

    def outputs(
        self,
        function: Callable[[Tensor], Tensor],
        where: Callable[[Tensor], str | None] = lambda _: None,
        truths: Sequence[_Truth] | None = None,
        floor: float = FLOOR,
    ) -> None:
        """``where`` says for one sample in words where it begins to differ."""
        for truth in self._truths if truths is None else truths:
            try:
                made = function(truth.probe.x)
            except SecureQuantError:
                raise
            except Exception as error:
                raise self._mismatch(truth, first_line(error)) from error
            fits = made.numel() == truth.value.numel() and len(made) == len(truth.probe.x)
            if made.shape != truth.value.shape and not fits:
                got = f"shape {list(made.shape)}"
                raise self._mismatch(truth, got, f"{list(truth.value.shape)}")
            made = made.reshape(truth.value.shape)
            excess = truth.excess(made, floor)
            if not bool((excess <= 1).all()):
                worst = int(excess.flatten(1).amax(1).argmax()) if excess.ndim > 1 else 0
                place = where(truth.probe.x[worst : worst + 1])
                got = truth.relative(made)
                raise self._mismatch(truth, f"{got}; {place}" if place else got)

    def refuse_sizes(self) -> None:
        """Refuse a module that does otherwise with many samples, where torch.export could not show
        that their number is of no matter."""
        typical = self._truths[0]
        for size in _SIZES:
            if size * typical.probe.x[0].numel() > MOST_VALUES:
                return
            times = -(-size // len(typical.probe.x))
            many = typical.probe.x.repeat(times, *[1] * (typical.probe.x.ndim - 1))[:size]
            made = self.owner.run(many)
            whole = typical.value.repeat(times, *[1] * (typical.value.ndim - 1))[:size]
            truth = replace(typical, value=whole)
            fits = made.shape == whole.shape
            if not fits or bool((truth.excess(made) > 1).any()):
                raise UnsupportedModule(
                    f"{self.owner.name} on {size} samples",
                    got="a result that depends on how many samples there are",
                    expected="each sample for itself", hint=_ALONE,
                )  # fmt: skip

    def _mismatch(
        self, truth: _Truth, got: str, expected: str = "what the module gives"
    ) -> CaptureMismatch:
        whole = self.owner.masked and not truth.probe.typical
        hint = _HIDDEN if whole else "write that step with other functions, without writing into "
        hint += "tensors in place; docs/quantization.md lists the ops that can be used"
        return CaptureMismatch(
            f"captured graph of {self.owner.name}, on {truth.probe.name}", got=got,
            expected=expected, hint=hint,
        )  # fmt: skip

    def _truth(self, probe: Probe) -> _Truth:
        value = self.owner.run(probe.x)
        if not value.numel():
            raise UnsupportedModule(
                f"{self.owner.name} on {len(probe.x)} samples", got="a result without elements",
                expected="each sample for itself", hint=_ALONE,
            )  # fmt: skip
        single = self.owner.run(probe.x, torch.float32)
        if self.owner.dtype is torch.float32:
            # No float64 to compare with: the size of float32's own error stands for it.
            size = value.abs().nan_to_num(0.0, 0.0, 0.0).amax(0).double()
            noise = largest_of(size[None], self.owner.outputs) * 2**-20 * torch.ones_like(size)
        else:
            noise = (single.double() - value).abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
        return _Truth(probe, value.double(), noise, self.owner.outputs)

    def _refuse_changes(self, before: dict[str, Tensor]) -> None:
        after = self.owner.state()
        for name in sorted(before.keys() | after.keys()):
            same = name in before and name in after and _identical(before[name], after[name])
            if not same:
                raise UnsupportedModule(
                    f"{self.owner.name}: its forward changes {name!r}", got="a state",
                    expected="a module that gives one result for one input",
                    hint="keep what is counted or averaged outside of forward in eval mode",
                )  # fmt: skip

    def _refuse_other_results(self) -> None:
        """The same samples once more, and some of them alone."""
        typical = self._truths[0]
        if not bool(torch.isfinite(typical.value).all()):
            raise UnsupportedModule(
                f"{self.owner.name} on calibration samples", got="NaN or infinity at its output",
                expected="finite numbers", hint="look at its weights, statistics and inputs",
            )  # fmt: skip
        again = self.owner.run(typical.probe.x)
        if not _identical(again.double(), typical.value):
            raise UnsupportedModule(
                f"{self.owner.name} in eval mode", got="two results for one input",
                expected="the same result in each call",
                hint="random steps and states: pass training=self.training to "
                     "functional.dropout, and keep nothing from call to call",
            )  # fmt: skip
        fresh = self.owner.run_fresh(typical.probe.x)
        if fresh.shape != typical.value.shape or bool((typical.excess(fresh) > 1).any()):
            raise UnsupportedModule(
                f"{self.owner.name}, copied anew", got="another result for the same input",
                expected="a result that is made of its parameters",
                hint="its first call draws or keeps something: draw it in __init__, and keep it "
                     "in a buffer",
            )  # fmt: skip
        for place in (0, len(typical.probe.x) - 1):
            alone = self.owner.run(typical.probe.x[place : place + 1])
            whole = typical.value[place : place + 1] if typical.value.ndim else typical.value
            fits = alone.numel() == whole.numel()
            truth = replace(typical, value=whole)
            if not fits or bool((truth.excess(alone.reshape(whole.shape)) > 1).any()):
                path = first_dependent(self.owner, typical.probe.x, place)
                raise UnsupportedModule(
                    f"{self.owner.name}{path}",
                    got="a sample whose result depends on the others with it",
                    expected="each sample for itself",
                    hint=_ALONE,
                )  # fmt: skip


def _identical(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN too, or as near as sums of another order come."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=1e-12, equal_nan=True)
