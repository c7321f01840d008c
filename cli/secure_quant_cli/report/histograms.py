"""Small plots of the integers of weights and activations, one a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from secure_quant_cli.comparison import HISTOGRAM, Histograms
from secure_quant_cli.report.drawing import BLUE, INK, ORANGE, figure_of, look, svg

__all__ = ["Small", "activations", "densities", "weights"]

FEW = 32
"""Up to so many different integers, each is drawn on its own: bars would invent what is between."""
TOGETHER = 4
"""Integers that share a bar, at least."""
CENTRES = HISTOGRAM[:-1]

Array = NDArray[np.float64]


def _together(counts: NDArray[np.int64]) -> int:
    """Integers that share a bar: by Rice's rule, 2 n^(1/3) bars over int8 for n values."""
    bars: float = 2 * float(max(1, counts.sum())) ** (1 / 3)
    return max(TOGETHER, round(256 / bars))


@dataclass(frozen=True)
class Small:
    """A plot and the words beside it."""

    name: str
    note: str
    svg: str


def densities(counts: NDArray[np.int64]) -> tuple[Array, Array]:
    """Counts of integers, int64[len(CENTRES)] -> (edges float64[n+1], share an integer float64[n]).

    Neighbouring integers that occur share a bar until it is as wide as so many counts can fill
    evenly; its edges lie halfway to the next that occur. So integers that cannot occur, as between
    the steps of a coarser scale, make bars wider and not empty: no comb.
    """
    at = CENTRES[counts > 0].astype(np.float64)
    if at.size == 0:
        return np.array([-0.5, 0.5]), np.zeros(1)
    halves = np.concatenate([[at[0] - 0.5], (at[:-1] + at[1:]) / 2, [at[-1] + 0.5]])
    wide, edges, kept = _together(counts), [halves[0]], []
    for i, end in enumerate(halves[1:]):
        if end - edges[-1] >= wide or i == len(at) - 1:
            edges.append(end)
            kept.append(i + 1)
    shares = np.cumsum(counts[counts > 0]) / counts.sum()
    in_bars = np.diff(np.concatenate([[0.0], shares[np.array(kept) - 1]]))
    return np.array(edges), in_bars / np.diff(edges)


def weights(histograms: Histograms) -> list[Small]:
    """How often each int8 weight occurs, a layer each."""
    made = []
    for number, (name, counts) in enumerate(histograms.items()):
        if "weight" not in counts:
            continue
        seen = counts["weight"]
        ends, zero = seen[np.abs(CENTRES) == 127].sum(), seen[CENTRES == 0].sum()
        note = f"{ends / seen.sum():.1%} at ±127, {zero / seen.sum():.1%} zero"
        key = f"weights{number}"
        with look(key):
            figure, ax = figure_of(1.3, 2.5)
            _integers(ax, seen)
            _thresholds(ax, (-127, 127))
            made.append(Small(name, note, svg(figure, key, f"Weights of {name}: {note}")))
    return made


def activations(histograms: Histograms) -> list[Small]:
    """The integers of each int8 activation, and the float model's values in the same units, so that
    what lies outside int8 is what was clipped."""
    made = []
    for number, (name, counts) in enumerate(histograms.items()):
        if "int8" not in counts:
            continue
        key = f"activations{number}"
        with look(key):
            figure, ax = figure_of(1.3, 2.5)
            peak, step = _integers(ax, counts["int8"])
            note = _beyond(counts)
            if "float" in counts:
                _floats(ax, counts["float"], step)
            if peak > 0:
                ax.set_ylim(0, peak)
            _thresholds(ax, (-128, 127))
            made.append(Small(name, note, svg(figure, key, f"Activations of {name}: {note}")))
    return made


def _beyond(counts: dict[str, NDArray[np.int64]]) -> str:
    if "float" in counts:
        outside = (CENTRES < -128) | (CENTRES > 127)
        share = counts["float"][outside].sum() / counts["float"].sum()
        return f"{share:.2%} of float beyond int8"
    ends = (CENTRES == -128) | (CENTRES == 127)
    return f"{counts['int8'][ends].sum() / counts['int8'].sum():.2%} at the ends of int8"


def _integers(ax: Axes, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Draws them. The height of the axis, where a spike, as of the zeros behind a ReLU, is cut off:
    it would hide the rest; and the integers that a height stands for."""
    at = np.flatnonzero(counts)
    if len(at) <= FEW:
        shares = counts[at] / counts.sum()
        ax.vlines(CENTRES[at], 0, shares, color=BLUE, linewidth=1.6)
        ax.plot(CENTRES[at], shares, "o", color=BLUE, markersize=2.5)
        step = float(np.median(np.diff(at))) if len(at) > 1 else 1.0
        return _without_spike(shares), step
    edges, heights = densities(counts)
    ax.stairs(heights, edges, fill=True, color=BLUE, alpha=0.6, linewidth=0)
    return _without_spike(heights), 1.0


def _without_spike(heights: Array) -> float:
    ordered = np.sort(heights)[::-1]
    if len(ordered) > 1 and ordered[0] > 3 * ordered[1] > 0:
        return float(1.6 * ordered[1])
    return float(1.08 * ordered[0])


def _floats(ax: Axes, counts: NDArray[np.int64], step: float) -> None:
    """Values that are no integers: bars of equal width, as shares of ``step`` integers."""
    wide = _together(counts)
    edges = np.append(CENTRES[::wide], HISTOGRAM[-1]) - 0.5
    bars = np.add.reduceat(counts / counts.sum(), np.arange(0, len(counts), wide))
    ax.stairs(step * bars / np.diff(edges), edges, color=ORANGE, linewidth=0.9)


def _thresholds(ax: Axes, ends: tuple[int, int]) -> None:
    for end in ends:
        ax.axvline(end, color=INK, linestyle=":", linewidth=0.9)
    ax.set_xlim(HISTOGRAM[0], HISTOGRAM[-1])
    ax.set_xticks([*ends, 0], [*map(str, ends), "0"], fontsize=8)
    ax.set_yticks([])
    ax.set_yticks([], minor=True)
    ax.spines["left"].set_visible(False)
