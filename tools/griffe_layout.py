"""Docstrings as the site shows them: names with their meanings in columns become lists.

Our docstrings describe fields and arguments as ``name  meaning``, two blanks or more between, lines
that go on indented. Markdown would run them together.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Columns", "listed"]

FIRST = re.compile(r"^([\w.`()*]+(?:, [\w.`()*]+)*) {2,}(\S.*)$")


class Columns(griffe.Extension):
    """Rewrites every docstring before it is shown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """After an object was read."""
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """Paragraphs that are columns from their first line on, as Markdown lists."""
    return "\n\n".join(map(_paragraph, text.split("\n\n")))


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if not lines or FIRST.match(lines[0]) is None:
        return text
    made = []
    for line in lines:
        found = FIRST.match(line)
        if found is not None:
            made.append(f"- `{found[1].strip('`')}`: {found[2]}")
        else:
            made.append(f"  {line.strip()}")
    return "\n".join(made)
