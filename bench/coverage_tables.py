"""Results of ``model_coverage.py --families`` as Markdown, in a page's marked parts.

A page says where, ``<!-- coverage: counts -->`` or ``<!-- coverage: models -->``, and what stands
from there to ``<!-- end -->`` is written anew.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["counts", "known", "listing", "write_into"]

Rows = dict[str, Any]
KINDS = ("exact", "coarse", "refused", "wrong", "stopped")
"""exact: taken, and onnxruntime gives the same integers. coarse: the same, but further off the
float model than ``quantize`` allows by itself. refused: by a named error. wrong: other integers, or
an error without a name. stopped: at the limit of time or memory."""
_MARKED = re.compile(r"(<!-- coverage: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEAD = (
    "| model | input | blocks left out | | cosine | error | seconds |",
    "|---|---|---|---|---|---|---|",
)
_WIDTH = 115


def known(path: Path) -> Rows:
    """By key; of several rows of a model the last."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def write_into(page: Path, rows: Rows) -> None:
    """The marked parts of ``page``, anew. Raises ValueError for a page without any."""
    parts: dict[str, Callable[[Rows], str]] = {"counts": counts, "models": listing}
    made, number = _MARKED.subn(
        lambda found: f"{found[1]}\n{parts[found[2]](rows)}\n{found[3]}", page.read_text()
    )
    if not number:
        raise ValueError(f"{page} has no part between <!-- coverage: ... --> and <!-- end -->")
    page.write_text(made)


def counts(rows: Rows) -> str:
    """A line for each group: its models, how many were measured, and what came of them."""
    lines = [f"| | models | measured | {' | '.join(KINDS)} |", f"|---|{'---|' * (len(KINDS) + 2)}"]
    for group, models in _asked(rows).items():
        found = Counter(rows[key]["kind"] for key in models if key in rows)
        numbers = (len(models), found.total(), *(found[kind] for kind in KINDS))
        lines.append(f"| {group} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines) + "\n"


def listing(rows: Rows) -> str:
    """Every model by group, what the refused were refused for, and what is not measured."""
    made, asked = [counts(rows)], _asked(rows)
    for group, models in asked.items():
        found = [rows[key] for key in models if key in rows]
        if found:
            lines = [f"## {group}", "", *_HEAD, *map(_line, found)]
            made.append("\n".join(lines) + "\n")
    refused = [row for row in rows.values() if "why" in row]
    if refused:
        lines = ["## Refused, wrong or stopped", "", "| model | | why |", "|---|---|---|"]
        lines += [f"| {row['model']} | {row['kind']} | {_why(row)} |" for row in refused]
        made.append("\n".join(lines) + "\n")
    missing = {
        group: [models[key] for key in models if key not in rows] for group, models in asked.items()
    }
    if any(missing.values()):
        told = (f"{group}: {', '.join(names)}." for group, names in missing.items() if names)
        made.append("## Not measured yet\n\n" + "\n".join(map(_filled, told)))
    return "\n".join(made)


def _asked(rows: Rows) -> dict[str, dict[str, str]]:
    """The models of the families that ``rows`` are of, one an architecture and what was measured
    beside: name by key, by group, in alphabetical order."""
    from families import listed

    groups: dict[str, dict[str, str]] = {}
    for family in dict.fromkeys(row["family"] for row in rows.values()):
        for model in listed(family, True):
            if model.first or model.key in rows:
                grouped = family != "timm"
                group = f"{family} {model.group}" if grouped else f"{family}, one a family"
                name = model.name if grouped else f"{model.group}: {model.name}"
                groups.setdefault(group, {})[model.key] = name
    return {group: dict(sorted(models.items())) for group, models in groups.items()}


def _line(row: dict[str, Any]) -> str:
    name = row["model"] if row["family"] != "timm" else f"{row['group']}: {row['model']}"
    size = "×".join(map(str, row.get("shape", ())))
    numbers = f"{row['cosine']:.4f} | {row['error']:.2g}" if "cosine" in row else " | "
    lacks = row.get("lacks", "") or ""
    return f"| {name} | {size} | {lacks} | {row['kind']} | {numbers} | {row.get('seconds', '')} |"


def _why(row: dict[str, Any]) -> str:
    return str(row["why"]).splitlines()[0][:300].replace("|", "\\|")


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"
