"""Plots of the figures of layers and schemes, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from secure_quant.engines import find
from secure_quant_cli.engines import exact
from secure_quant_cli.report.drawing import (
    BLUE,
    GREY,
    GRID,
    ORANGE,
    PAPER,
    figure_of,
    look,
    svg,
)

__all__ = ["errors", "schemes", "times", "traffic"]

MOVES = {"Reshape", "Transpose", "Slice", "Gather"}
"""Ops that keep every value, whose errors are those of the layer before."""

Layers = Sequence[dict[str, Any]]


def errors(layers: Layers) -> str | None:
    """Mean and largest error of each layer against the float model, as shares of the layer's
    largest float value."""
    seen = [layer for layer in layers if layer.get("float_peak") and layer["op"] not in MOVES]
    if not seen:
        return None
    with look("errors"):
        figure, ax = figure_of(0.9 + 0.21 * len(seen))
        place = np.arange(len(seen))
        mean = np.array([layer["float_error_mean"] / layer["float_peak"] for layer in seen])
        largest = np.array([layer["float_error_max"] / layer["float_peak"] for layer in seen])
        ax.hlines(place, mean, largest, color=GREY, linewidth=1)
        ax.plot(mean, place, "o", color=BLUE, markersize=5, label="mean")
        ax.plot(largest, place, "D", color=ORANGE, markersize=4.5, label="largest")
        ax.set_xlim(0, max(1.05 * largest.max(), 1e-9))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
        ax.set_xlabel("error, share of the layer's largest float value")
        _named(ax, seen)
        figure.legend(loc="outside upper right", ncols=2)
        worst = seen[int(largest.argmax())]["name"]
        title = (
            f"Error of each layer against float; the largest, {largest.max():.1%}, is in {worst}"
        )
        return svg(figure, "errors", title)


def traffic(layers: Layers, engine: str) -> str | None:
    """Bytes of each layer for one sample, as planned."""
    title = f"Bytes of each layer, {find(engine).title}"
    return _bars(layers, engine, exact(engine).traffic, "B", f"{engine}-traffic", 1.0, title)


def times(layers: Layers, engine: str) -> str | None:
    """Computing time of each layer for one sample."""
    plain = engine == "reference"
    parts = {"ms": "plaintext"} if plain else exact(engine).times
    title = f"Computing time of each layer, {'plaintext' if plain else find(engine).title}"
    return _bars(layers, engine, parts, "s", f"{engine}-times", 1e-3, title)


def _bars(
    layers: Layers, engine: str, parts: Mapping[str, str], unit: str, name: str, factor: float,
    title: str,
) -> str | None:  # fmt: skip
    """Stacked bars, told apart by hatches too."""
    kept = (layer for layer in layers if layer["op"] not in MOVES)
    seen = [layer for layer in kept if any(layer.get(engine, {}).get(part) for part in parts)]
    if not seen:
        return None
    with look(name):
        figure, ax = figure_of(0.9 + 0.21 * len(seen), 5.0)
        place, left = np.arange(len(seen)), np.zeros(len(seen))
        looks = ((BLUE, ""), (ORANGE, "////"))
        for (part, label), (color, hatch) in zip(parts.items(), looks, strict=False):
            size = factor * np.array([layer[engine].get(part, 0.0) for layer in seen])
            ax.barh(place, size, left=left, height=0.66, color=color, hatch=hatch,
                    edgecolor=PAPER, linewidth=0.4, label=label)  # fmt: skip
            left += size
        ax.xaxis.set_major_formatter(EngFormatter(unit))
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
        _named(ax, seen)
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)
        return svg(figure, name, f"{title}; the most is at {seen[int(left.argmax())]['name']}")


def schemes(study: Sequence[dict[str, Any]], plain: float | None) -> str:
    """Accuracy (or float error, without labels) against stored bytes; ``plain``: of float."""
    labelled = "accuracy" in study[0]
    with look("schemes"):
        figure, ax = figure_of(4.2)
        places: dict[tuple[float, float], list[str]] = {}
        for record in study:
            share = record["weight_bytes"] / record["float_weight_bytes"]
            value = record["accuracy"] if labelled else record["float_error_mean"]
            places.setdefault((share, value), []).append(record["scheme"])
        for number, ((share, value), names) in enumerate(places.items()):
            marker = "osD^vP"[number % 6]
            ax.plot([share], [value], marker, color=BLUE, markersize=8, label=",\n".join(names))
        if labelled and plain is not None:
            ax.axhline(plain, color=ORANGE, linestyle="--", linewidth=1.2, label="float32 model")
        ax.set_xlim(0, 0.3)
        ax.set_xticks(np.arange(0, 0.31, 0.05))
        ax.margins(y=0.25)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel("stored weights, share of float32")
        if labelled:
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        ax.set_ylabel("accuracy" if labelled else "mean error against float")
        ax.grid(axis="y", color=GRID, linewidth=0.6)
        figure.legend(loc="outside lower left", ncols=2, fontsize=8)
        what = "Accuracy" if labelled else "Error"
        return svg(figure, "schemes", f"{what} of each weight scheme against its stored weights")


def _named(ax: Axes, layers: Layers) -> None:
    ax.set_ylim(len(layers) - 0.4, -0.6)
    ax.set_yticks(range(len(layers)), [_short(layer["name"]) for layer in layers])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)


def _short(name: str, room: int = 22) -> str:
    """The end of a long dotted name tells most."""
    return name if len(name) <= room else "…" + name[-(room - 1) :]
