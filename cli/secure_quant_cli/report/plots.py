"""Plots as inline SVG: text stays text, ids are the same in every run, no reference leads out."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from secure_quant_cli.comparison import HISTOGRAM, Histograms
from secure_quant_cli.engines import exact

__all__ = ["activations", "errors", "schemes", "times", "traffic", "weights"]

INK, BLUE, ORANGE, GREY = "#1f2933", "#2a6f97", "#d1793b", "#9aa5b1"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}
COLUMNS = 4
TOGETHER = 4
"""Integers of an activation that share a bar; both ends of int8 are ends of a bar."""
MOVES = {"Reshape", "Transpose", "Slice", "Gather"}
"""Ops that keep every value, whose errors are those of the layer before."""
WIDTH = 10.0
"""Inches of every figure; the page scales them."""

Layers = Sequence[dict[str, Any]]


def weights(histograms: Histograms) -> str | None:
    """A small plot per layer: how often each int8 weight occurs."""
    layers = {name: counts["weight"] for name, counts in histograms.items() if "weight" in counts}
    if not layers:
        return None
    with _look("weights"):
        figure, axes = _grid(len(layers))
        for ax, (name, counts) in zip(axes, layers.items(), strict=False):
            inside = np.flatnonzero((HISTOGRAM[:-1] >= -128) & (HISTOGRAM[:-1] <= 127))
            values, seen = HISTOGRAM[inside], counts[inside]
            ax.stairs(seen / seen.sum(), np.arange(-128, 129) - 0.5, fill=True, color=BLUE)
            ends, zero = seen[np.abs(values) == 127].sum(), seen[values == 0].sum()
            ax.set_title(_short(name), fontweight="bold", pad=14)
            note = f"{ends / seen.sum():.1%} at ±127, {zero / seen.sum():.1%} zero"
            ax.annotate(note, (0, 1.02), xycoords="axes fraction", fontsize=7.5)
            _thresholds(ax, (-127, 127))
            _bare(ax)
        return _svg(figure, "weights")


def activations(histograms: Histograms) -> str | None:
    """A small plot per int8 activation: its integers, and the float model's values in the same
    units, so that what lies outside int8 is what was clipped."""
    layers = {name: counts for name, counts in histograms.items() if "int8" in counts}
    if not layers:
        return None
    with _look("activations"):
        figure, axes = _grid(len(layers))
        for ax, (name, counts) in zip(axes, layers.items(), strict=False):
            _activation(ax, counts)
            ax.set_title(_short(name), fontweight="bold", pad=14)
        return _svg(figure, "activations")


def _activation(ax: Axes, counts: dict[str, Any]) -> None:
    shares = {kind: seen / seen.sum() for kind, seen in counts.items()}
    edges = np.append(HISTOGRAM[:-1:TOGETHER], HISTOGRAM[-1]) - 0.5
    bars = {kind: np.add.reduceat(seen, np.arange(0, len(seen), TOGETHER))
            for kind, seen in shares.items()}  # fmt: skip
    ax.stairs(bars["int8"], edges, fill=True, color=BLUE, alpha=0.55, linewidth=0)
    ends = (HISTOGRAM[:-1] == -128) | (HISTOGRAM[:-1] == 127)
    outside = (HISTOGRAM[:-1] < -128) | (HISTOGRAM[:-1] > 127)
    if "float" in shares:
        ax.stairs(bars["float"], edges, color=ORANGE, linewidth=0.9)
        note = f"{shares['float'][outside].sum():.2%} of float beyond int8"
    else:
        note = f"{shares['int8'][ends].sum():.2%} at the ends of int8"
    ax.annotate(note, (0, 1.02), xycoords="axes fraction", fontsize=7.5)
    # A spike, as of the zeros behind a ReLU, is cut off: it would hide the rest.
    ordered = np.sort(bars["int8"])[::-1]
    if ordered[0] > 3 * ordered[1] > 0:
        ax.set_ylim(0, 1.6 * ordered[1])
    _thresholds(ax, (-128, 127))
    _bare(ax)


def errors(layers: Layers) -> str | None:
    """Mean and largest error of each layer against the float model, as shares of the layer's
    largest float value."""
    seen = [layer for layer in layers if layer.get("float_peak") and layer["op"] not in MOVES]
    if not seen:
        return None
    with _look("errors"):
        figure, ax = _rows(len(seen))
        place = np.arange(len(seen))
        mean = np.array([layer["float_error_mean"] / layer["float_peak"] for layer in seen])
        largest = np.array([layer["float_error_max"] / layer["float_peak"] for layer in seen])
        ax.hlines(place, mean, largest, color=GREY, linewidth=1)
        ax.plot(mean, place, "o", color=BLUE, markersize=5, label="mean")
        ax.plot(largest, place, "D", color=ORANGE, markersize=4.5, label="largest")
        ax.set_xlim(0, max(1.05 * largest.max(), 1e-9))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xlabel("|reference − float| as a share of the layer's largest float value")
        _named(ax, seen)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        return _svg(figure, "errors")


def traffic(layers: Layers, engine: str) -> str | None:
    """Bytes of each layer for one sample, as planned."""
    return _bars(layers, engine, exact(engine).traffic, "B", f"{engine}-traffic", 1.0)


def times(layers: Layers, engine: str) -> str | None:
    """Computing time of each layer for one sample."""
    parts = {"ms": "plaintext"} if engine == "reference" else exact(engine).times
    return _bars(layers, engine, parts, "s", f"{engine}-times", 1e-3)


def _bars(
    layers: Layers, engine: str, parts: Mapping[str, str], unit: str, name: str, factor: float
) -> str | None:
    """Stacked bars, told apart by hatches too."""
    kept = (layer for layer in layers if layer["op"] not in MOVES)
    seen = [layer for layer in kept if any(layer.get(engine, {}).get(part) for part in parts)]
    if not seen:
        return None
    with _look(name):
        figure, ax = _rows(len(seen), WIDTH / 2)
        place, left = np.arange(len(seen)), np.zeros(len(seen))
        looks = ((BLUE, ""), (ORANGE, "////"))
        for (part, label), (color, hatch) in zip(parts.items(), looks, strict=False):
            size = factor * np.array([layer[engine].get(part, 0.0) for layer in seen])
            ax.barh(place, size, left=left, height=0.66, color=color, hatch=hatch,
                    edgecolor="white", linewidth=0.4, label=label)  # fmt: skip
            left += size
        ax.xaxis.set_major_formatter(EngFormatter(unit))
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
        _named(ax, seen)
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)
        return _svg(figure, name)


def schemes(study: Sequence[dict[str, Any]], exact: float | None) -> str:
    """Accuracy (or float error, without labels) against stored bytes; ``exact``: of float."""
    labelled = "accuracy" in study[0]
    with _look("schemes"):
        figure = Figure((WIDTH * 0.8, 3.2), layout="constrained")
        ax = figure.subplots()
        places: dict[tuple[float, float], list[str]] = {}
        for record in study:
            share = record["weight_bytes"] / record["float_weight_bytes"]
            value = record["accuracy"] if labelled else record["float_error_mean"]
            places.setdefault((share, value), []).append(record["scheme"])
        for number, ((share, value), names) in enumerate(places.items()):
            marker = "osD^vP"[number % 6]
            ax.plot([share], [value], marker, color=BLUE, markersize=8, label=",\n".join(names))
        if labelled and exact is not None:
            ax.axhline(exact, color=ORANGE, linestyle="--", linewidth=1.2, label="float32 model")
        ax.set_xlim(0, 0.3)
        ax.set_xticks(np.arange(0, 0.31, 0.05))
        ax.margins(y=0.25)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel("stored weights, share of float32")
        if labelled:
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        ax.set_ylabel("accuracy" if labelled else "mean error against float")
        ax.grid(axis="y", color="#e4e7eb", linewidth=0.6)
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return _svg(figure, "schemes")


def _look(name: str) -> Any:
    """The style; the salt makes ids the same in every run and apart between plots."""
    return mpl.rc_context(STYLE | {"svg.hashsalt": name})  # type: ignore[arg-type]


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    rows = math.ceil(count / COLUMNS)
    figure = Figure((WIDTH, 1.75 * rows), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr,call-arg]
    return figure, axes


def _rows(count: int, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure((width, 0.9 + 0.21 * count), layout="constrained")
    ax = figure.subplots()
    ax.set_ylim(count - 0.4, -0.6)
    return figure, ax


def _named(ax: Axes, layers: Layers) -> None:
    ax.set_yticks(range(len(layers)), [_short(layer["name"], 30) for layer in layers])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#e4e7eb", linewidth=0.6)
    ax.set_axisbelow(True)


def _thresholds(ax: Axes, ends: tuple[int, int]) -> None:
    for end in ends:
        ax.axvline(end, color=INK, linestyle=":", linewidth=0.9)
    ax.set_xlim(HISTOGRAM[0], HISTOGRAM[-1])
    ax.set_xticks([*ends, 0], [*map(str, ends), "0"], fontsize=7.5)


def _bare(ax: Axes) -> None:
    ax.set_yticks([])
    ax.set_yticks([], minor=True)
    ax.spines["left"].set_visible(False)


def _short(name: str, room: int = 26) -> str:
    """The end of a long dotted name tells most."""
    return name if len(name) <= room else "…" + name[-(room - 1) :]


def _svg(figure: Figure, name: str) -> str:
    """The <svg> element alone; its ids start with ``name``."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    # The page gives the element a width; the height follows from the viewBox.
    return re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"|^<svg ([^>]*?)height="[^"]*" '
                  r'([^>]*?)width="[^"]*"', r"<svg \1\2\3", text, count=1)  # fmt: skip
