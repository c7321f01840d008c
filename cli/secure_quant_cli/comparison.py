"""What ``verify`` finds: every engine against the reference, and that against the float model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OpNotSupported
from secure_quant.ir import Graph, ops
from secure_quant.reference.units import units
from secure_quant_cli.arrays import Arrays, part_of
from secure_quant_cli.intervals import wilson

if TYPE_CHECKING:
    from secure_quant.quantizer.floats import FloatValues
    from secure_quant_cli.engines import Costs
    from secure_quant_cli.inprocess import Run

__all__ = [
    "HISTOGRAM",
    "Comparison",
    "Histograms",
    "accuracy",
    "compare",
    "cost_cells",
    "mismatches",
]

HISTOGRAM = np.arange(-192, 194)
"""Edges of the bins, in integers of the layer: int8 and half as much again on each side, where
float values lie that were clipped. What lies further out counts in the last bin."""

Int = NDArray[np.int64]
Histograms = dict[str, dict[str, Int]]
"""Node name -> counts in HISTOGRAM's bins: ``int8`` (an activation), ``float`` (the same of the
float model, in units of the scale) or ``weight``."""


@dataclass
class Comparison:
    """report: plain values. histograms: for plots."""

    report: dict[str, Any]
    histograms: Histograms = field(default_factory=dict)


@dataclass
class _Errors:
    """Of one layer, over all samples."""

    largest: float = 0.0
    total: float = 0.0
    peak: float = 0.0
    count: int = 0

    def add(self, real: NDArray[np.float64], floats: NDArray[Any]) -> None:
        error = np.abs(real - floats)
        self.largest = max(self.largest, float(error.max()))
        self.peak = max(self.peak, float(np.abs(floats).max()))
        self.total += float(error.sum())
        self.count += error.size


def compare(
    graph: Graph,
    x: Arrays,
    engines: Sequence[str],
    batch: int,
    *,
    floats: FloatValues | None = None,
    labels: NDArray[Any] | None = None,
    skip_refused: bool = False,
) -> Comparison:
    """All of ``engines`` (exact ones, ``reference``, ``onnx``) on float[n, *input shape], ``batch``
    samples at a time.

    floats: of the float model, for errors layer by layer. labels: int[n], for accuracies.
    skip_refused: an engine that refuses the model is reported, not raised.
    Raises OpNotSupported, and what the reference raises for a wrong input.
    """
    from secure_quant import reference
    from secure_quant_cli.console import progress
    from secure_quant_cli.engines import exact, exact_names
    from secure_quant_cli.inprocess import reference_engine

    q = reference.quantize_input(graph, x)
    truths = _Truths(graph, floats)
    report: dict[str, Any] = {"model": graph.hash, "samples": len(q), "batch": batch, "engines": {}}
    with progress(f"reference on {len(q)} samples") as line:
        watch = _Watch(batch)
        execute = reference_engine(graph)
        for start in range(0, len(q), batch):
            part = execute(q[start : start + batch])
            watch.add(part)
            truths.add(part_of(x, start, start + batch), part.values)
            line.part(min(start + batch, len(q)), len(q))
    times = {"reference": watch.times()}
    refused: dict[str, str] = {}
    for engine in (name for name in engines if name != "reference"):
        try:
            report["engines"][engine], times[engine] = _engine(graph, q, engine, batch, labels)
        except OpNotSupported as error:
            if not skip_refused:
                raise
            refused[engine] = str(error)
    known = exact_names()
    costs = {name: exact(name).costs(graph) for name in report["engines"] if name in known}
    report["refused"] = refused
    report["layers"] = _layers(graph, truths, times, costs)
    report["plans"] = {engine: total for engine, (total, _) in costs.items()}
    found = [each["mismatches"] for each in report["engines"].values()]
    report["bit_exact"] = not any(found) if found else None  # the reference alone shows nothing
    report |= truths.summary(labels)
    return Comparison(report, truths.histograms)


def _engine(
    graph: Graph, q: NDArray[np.int8], engine: str, batch: int, labels: NDArray[Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what differed, times by layer) of one engine."""
    from secure_quant import reference
    from secure_quant_cli.console import progress
    from secure_quant_cli.engines import in_process
    from secure_quant_cli.inprocess import onnx_engine

    layers: dict[str, dict[str, int]] = {}
    outputs, watch = [], _Watch(batch)
    with progress(f"{engine} on {len(q)} samples") as line:
        line.note("planning")
        execute = onnx_engine(graph) if engine == "onnx" else in_process(engine, graph)
        line.note("")
        for start in range(0, len(q), batch):
            part = q[start : start + batch]
            run = execute(part)
            truth = reference.trace(graph, part)
            del truth[graph.input.name]  # the client's own
            _count(layers, truth, run.values)
            watch.add(run)
            outputs.append(run.values[graph.output.name])
            line.part(start + len(part), len(q))
    wrong = [node.name for node in graph.nodes if layers.get(node.name, {}).get("mismatches")]
    found: dict[str, Any] = {
        "layers": layers,
        "compared": sum(layer["compared"] for layer in layers.values()),
        "mismatches": sum(layer["mismatches"] for layer in layers.values()),
        "first_difference": wrong[0] if wrong else None,
    }
    if labels is not None:
        found["accuracy"] = accuracy(np.concatenate(outputs), labels, graph)
    return found, watch.times()


def cost_cells(layer: Mapping[str, Any], engine: str) -> list[str]:
    """What a table shows of a layer under ``engine``, in its columns."""
    from secure_quant_cli.console import human_bytes, milliseconds
    from secure_quant_cli.engines import exact

    figures = layer.get(engine, {})
    cells = []
    for title, parts in exact(engine).columns.items():
        total = sum(figures.get(part, 0) for part in parts) or None
        cells.append(milliseconds(total) if title == "time" else human_bytes(total))
    return cells


def _count(layers: dict[str, dict[str, int]], truth: dict[str, Int], made: dict[str, Int]) -> None:
    for name in (each for each in truth if each in made):
        layer = layers.setdefault(name, {"compared": 0, "mismatches": 0})
        layer["compared"] += truth[name].size
        layer["mismatches"] += mismatches(truth[name], made[name])


def mismatches(expected: NDArray[Any], got: NDArray[Any]) -> int:
    """Integers that differ; all of them if the shapes do."""
    if expected.shape != got.shape:
        return int(expected.size)
    return int((expected != got).sum())


def accuracy(y: NDArray[Any], labels: NDArray[Any], graph: Graph | None = None) -> float:
    """Share of samples whose largest output is at the label's place. With ``graph``, y are the
    integers at its Output."""
    from secure_quant import reference

    real = y if graph is None else _scores(graph, reference.dequantize(graph, y))
    return float((real.reshape(len(real), -1).argmax(-1) == labels).mean())


def _scores(graph: Graph, y: NDArray[Any]) -> NDArray[Any]:
    """The first output of [n, *output shape]."""
    from secure_quant import reference

    return next(iter(reference.named(graph, y).values()))


class _Watch:
    """Times of one engine over batches; the first batch, which warms up, counts only if alone."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._seconds: list[dict[str, dict[str, float]]] = []
        self._samples: list[int] = []

    def add(self, run: Run) -> None:
        self._seconds.append({"ms": run.seconds, "client_ms": run.client_seconds})
        self._samples.append(len(next(iter(run.values.values()))))

    def times(self) -> dict[str, dict[str, float]]:
        """Node name -> milliseconds a sample: ``ms``, and ``client_ms`` under HE."""
        warm = slice(1, None) if len(self._seconds) > 1 else slice(None)
        samples = sum(self._samples[warm])
        made: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for run in self._seconds[warm]:
            for kind, spent in run.items():
                for name, seconds in spent.items():
                    made[name][kind] = made[name].get(kind, 0.0) + 1e3 * seconds / samples
        return made


_TALLIED = ops.Input | ops.InputPort | ops.Requantize | ops.DynamicQuantize


class _Truths:
    """The reference's values as they come, against those of the float model."""

    def __init__(self, graph: Graph, floats: FloatValues | None) -> None:
        self.graph, self._floats = graph, floats
        self.errors: defaultdict[str, _Errors] = defaultdict(_Errors)
        self.histograms: Histograms = {}
        self.outputs: dict[str, list[NDArray[Any]]] = {"int8": [], "float": []}
        self._units = units(graph)
        ports = {port.node for port in graph.input_ports}
        self._packed = {graph.input.name} - ports
        for node in graph.nodes:
            if isinstance(node, ops.Linear | ops.Conv2d):
                self.histograms[node.name] = {"weight": _binned(graph.weight(node))}

    def add(self, x: Arrays, values: dict[str, Int]) -> None:
        """One batch."""
        from secure_quant import reference

        floats = {} if self._floats is None else self._floats(x)
        for node in self.graph.nodes:
            name, value = node.name, self.graph.values[node.name]
            factor = self._units[name]
            seen = floats.get(name)
            if seen is not None and factor is not None:
                self.errors[name].add((values[name] - value.zero_point) * factor, seen)
            int8 = value.range.lo >= -128 and value.range.hi <= 127
            if int8 and isinstance(node, _TALLIED) and name not in self._packed:
                self._tally(name, "int8", values[name])
                if seen is not None and factor is not None:
                    self._tally(name, "float", seen / factor + value.zero_point)
        output = self.graph.output.name
        real = reference.dequantize(self.graph, values[output])
        self.outputs["int8"].append(_scores(self.graph, real))
        if floats:
            self.outputs["float"].append(_scores(self.graph, floats[output]))

    def _tally(self, name: str, kind: str, values: NDArray[Any]) -> None:
        counts = self.histograms.setdefault(name, {})
        counts[kind] = counts.get(kind, np.zeros(len(HISTOGRAM) - 1, np.int64)) + _binned(values)

    def summary(self, labels: NDArray[Any] | None) -> dict[str, Any]:
        """Errors at the output, and accuracies."""
        made: dict[str, Any] = {}
        if self.outputs["float"]:
            errors = [self.errors[port.node] for port in self.graph.output_ports]
            made["float_error_max"] = max(each.largest for each in errors)
            made["float_error_mean"] = sum(e.total for e in errors) / sum(e.count for e in errors)
        if labels is not None:
            for kind in (kind for kind, parts in self.outputs.items() if parts):
                share = accuracy(np.concatenate(self.outputs[kind]), labels)
                made[f"accuracy_{kind}"] = share
                made[f"accuracy_{kind}_interval"] = wilson(share, len(labels))
        return made


def _binned(values: NDArray[Any]) -> Int:
    """Counts in HISTOGRAM's bins of values rounded to integers."""
    low, high = int(HISTOGRAM[0]), int(HISTOGRAM[-2])
    place = np.clip(np.rint(values), low, high).astype(np.int64) - low
    return np.bincount(place.reshape(-1), minlength=len(HISTOGRAM) - 1)


def _layers(
    graph: Graph,
    truths: _Truths,
    times: Mapping[str, Mapping[str, dict[str, float]]],
    costs: Mapping[str, Costs],
) -> list[dict[str, Any]]:
    made = []
    for node in graph.nodes:
        layer: dict[str, Any] = {
            "name": node.name,
            "op": type(node).__name__,
            "shape": list(graph.values[node.name].shape),
        }
        if node.name in truths.errors:
            errors = truths.errors[node.name]
            layer["float_error_max"] = errors.largest
            layer["float_error_mean"] = errors.total / errors.count
            layer["float_peak"] = errors.peak
        for engine, spent in times.items():
            planned = costs[engine][1].get(node.name, {}) if engine in costs else {}
            figures = dict(planned) | spent.get(node.name, {})
            if figures:
                layer[engine] = figures
        made.append(layer)
    return made
