"""How every plot is drawn: inline SVG whose text stays text, whose ids are the same in every run,
whose colours follow the page's light or dark style, and which says what it shows."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BLUE", "GREY", "GRID", "INK", "ORANGE", "PAPER", "WIDTH", "figure_of", "look", "svg"]

INK, BLUE, ORANGE, GREY = "#1f2933", "#2a6f97", "#d1793b", "#9aa5b1"
GRID, PAPER = "#e4e7eb", "#fefefe"
COLOURS = {
    INK: ("--ink", "#e6e9ed"),
    BLUE: ("--blue", "#6fb1d6"),
    ORANGE: ("--orange", "#e39a64"),
    GREY: ("--grey", "#7b8794"),
    GRID: ("--grid", "#38424d"),
    PAPER: ("--paper", "#171c22"),
}
"""Colour of the light style -> its CSS variable, and its value in the dark style."""
WIDTH = 5.4
"""Inches of a figure: its text can be read where a phone shows it whole."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}


def look(name: str) -> Any:
    """The style; the salt makes ids the same in every run and apart between plots."""
    return mpl.rc_context(STYLE | {"svg.hashsalt": name})  # type: ignore[arg-type]


def figure_of(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty figure of so many inches."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()


def svg(figure: Figure, name: str, title: str, *, alone: bool = False) -> str:
    """The <svg> element; its ids start with ``name``, readers that cannot see it get ``title``.

    alone: it brings its own colours of the dark style, for a page that shows it as a picture.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, (variable, _) in COLOURS.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    head, _, rest = text.partition(">")
    # The page gives the element a width; the height follows from the viewBox.
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    head += f' role="img" aria-labelledby="{name}-title"'
    style = f"<style>{_dark()}</style>" if alone else ""
    return f'{head}><title id="{name}-title">{escape(title)}</title>{style}{rest}'


def _dark() -> str:
    values = "; ".join(f"{name}: {value}" for name, value in COLOURS.values())
    return f"@media (prefers-color-scheme: dark) {{ :root {{ {values} }} }}"
