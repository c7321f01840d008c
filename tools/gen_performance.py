"""bench/RESULTS.md -> docs/performance.md and its plots.

Every figure is read from the tables of bench/RESULTS.md, where date, machine and command stand.
Plots need the extra `report`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from secure_quant_cli.report.drawing import BLUE, GREY, GRID, INK, ORANGE, figure_of, look, svg

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "bench" / "RESULTS.md", ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images" / "performance"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PEERS = "Milliseconds of one LeNet inference, call after call, ours and that of peers"
NETWORK = "Latency of one LeNet inference against the round-trip time of the network"
ENGINES = "Milliseconds of one LeNet inference under each engine, on one idle machine"
ACCURACY = "Accuracy of each weight scheme of a LeNet minus that of float32, mean of ten seeds"
Row = list[str]
Bar = tuple[str, float]
HEAD = """# Performance

Made by `tools/gen_performance.py` from [bench/RESULTS.md](../bench/RESULTS.md), which has date,
machine and command of every figure, and more of them; do not edit. Rounds and bytes are exact, and
`secure-quant inspect` knows them before anything runs. Measure your own model on your own machines:

```sh
secure-quant bench --model model.sq --engine mpc
```

**What decides latency.** On a fast network computation; else waiting. Secret sharing waits for half
a round trip between the parties in each round, since both send at once; homomorphic encryption for
a whole one with its client for each linear layer; one host for half of one in each flight.
"""


def table(title: str, text: str) -> list[Row]:
    """Cells of the first table after ``title``; header first, emphasis gone."""
    rows: list[Row] = []
    for line in text[text.index(title) + len(title) :].splitlines():
        if line.startswith("|"):
            rows.append([re.sub(r"[*`]", "", cell).strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return [row for row in rows if not set("".join(row)) <= {"-", " ", ":"}]


def first(cell: str) -> float:
    """The first number of a cell. Raises ValueError."""
    found = NUMBER.search(cell.replace("−", "-"))
    if found is None:
        raise ValueError(f"no number in {cell!r}")
    return float(found[0])


def page(text: str) -> str:
    """What docs/performance.md is to say."""
    parts = [HEAD]
    parts += ["## LeNet beside other systems\n", _picture("peers", PEERS)]
    parts += ["## Secret sharing\n", _cited("**Secret sharing.**", text)]
    parts += ["## Homomorphic encryption\n", _cited("**Homomorphic encryption**", text)]
    parts += [
        "## One host\n", _cited("## One host", text),
        "What is made ahead bounds what one client can ask for in a row. The same LeNet under each "
        "engine, on one machine in one quarter of an hour:\n",
        _picture("engines", ENGINES), _cited("**The three engines**", text),
    ]  # fmt: skip
    parts += [
        "## A slower network\n", _picture("network", NETWORK),
        _cited("**A slower network.**", text),
    ]  # fmt: skip
    parts += ["## Larger models\n", _cited("## Larger models, served", text)]
    parts += [
        "## Accuracy\n", "Of integers, and so of every engine. Mean of ten seeds.\n",
        _picture("accuracy", ACCURACY),
        _cited("**LeNet, digits as images 3×32×32**", text),
    ]  # fmt: skip
    parts += [
        "## When something is killed\n",
        _cited("## Kills under load, and many clients", text),
    ]
    return "\n".join(parts)


def _cited(title: str, text: str) -> str:
    rows = table(title, text)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"


def _picture(name: str, words: str) -> str:
    return f"![{words}](images/performance/{name}.svg)\n"


def plots(text: str) -> dict[str, str]:
    """File name -> SVG."""
    return {
        "peers": _bars("peers", PEERS, peers(text), "ms, one inference (logarithmic)", log=True),
        "engines": _bars("engines", ENGINES, engines(text), "ms, one inference", log=False),
        "network": _lines("network", NETWORK, *network(text)),
        "accuracy": _bars("accuracy", ACCURACY, accuracy(text), "points of percent", log=False),
    }


def peers(text: str) -> list[Bar]:
    """LeNet, batch 1: ours in a row, and peers on the same network, machine and day."""
    ours = next(
        row for row in table("**Secret sharing.**", text) if row[:3] == ["LeNet", "balanced", "1"]
    )
    made = [("secret sharing", first(ours[4]))]
    start = text.index("| the same network on a peer")
    made += [
        (row[0].split(" with ")[0].split(",")[0] + _bound(row[0]), first(row[1]))
        for row in table("", text[start:])[1:]
    ]
    theirs = table("**Homomorphic encryption**", text)[1]
    made += [("homomorphic encryption", first(theirs[3])), ("plain TenSEAL", first(theirs[6]))]
    return made


def engines(text: str) -> list[Bar]:
    """LeNet after rest, and where something is made ahead with that included."""
    made: list[Bar] = []
    for name, rest, row, _ in table("**The three engines**", text)[1:]:
        made.append((", ".join([name, *rest.split(", ")[1:]]), first(rest)))
        if "included" in row:
            made.append((", ".join([name, *row.split(", ")[1:]]), first(row)))
    return made


def _bound(name: str) -> str:
    return ", bound to cores" if "bound to a core" in name else ""


def network(text: str) -> tuple[list[float], dict[str, list[float]]]:
    """Round-trip times, and milliseconds by engine and objective."""
    header, *rows = table("**A slower network.**", text)
    return [first(cell) for cell in header[2:]], {row[0]: list(map(first, row[2:])) for row in rows}


def accuracy(text: str) -> list[Bar]:
    """Differences of the LeNet's schemes to float32."""
    rows = table("**LeNet, digits as images 3×32×32**", text)[2:]
    return [(row[0], first(row[2])) for row in rows]


def _bars(name: str, title: str, bars: Sequence[Bar], label: str, *, log: bool) -> str:
    with look(name):
        figure, ax = figure_of(0.7 + 0.28 * len(bars))
        place = range(len(bars))
        ax.barh(place, [value for _, value in bars], height=0.66, color=BLUE)
        ax.set_yticks(place, [name for name, _ in bars])
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        if log:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
        for at, (_, value) in zip(place, bars, strict=True):
            left = value < 0
            ax.annotate(f"{value:g}", (value, at), (-3 if left else 3, 0),
                        textcoords="offset points", va="center",
                        ha="right" if left else "left")  # fmt: skip
        ax.margins(x=0.15)
        ax.set_xlabel(label)
        return svg(figure, name, title, alone=True) + "\n"


def _lines(name: str, title: str, at: Sequence[float], lines: dict[str, list[float]]) -> str:
    with look(name):
        figure, ax = figure_of(3.2)
        looks = zip("osD^", (BLUE, ORANGE, GREY, INK), strict=True)
        for (label, values), (marker, colour) in zip(lines.items(), looks, strict=False):
            ax.plot(at, values, marker=marker, color=colour, label=label)
        ax.set_ylim(bottom=0)
        ax.set_xticks(at)
        ax.grid(axis="y", color=GRID, linewidth=0.6)
        ax.set_xlabel("round-trip time, ms")
        ax.set_ylabel("ms, one inference")
        figure.legend(loc="outside upper left")
        return svg(figure, name, title, alone=True) + "\n"


def made() -> dict[Path, str]:
    """Path -> what is to stand there."""
    return {PAGE: page(RESULTS.read_text())}


def drawn() -> dict[Path, str]:
    """The same of the plots."""
    return {IMAGES / f"{name}.svg": plot for name, plot in plots(RESULTS.read_text()).items()}
