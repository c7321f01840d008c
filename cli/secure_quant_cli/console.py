"""What the commands print: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import codecs
import json
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TextIO

__all__ = [
    "Progress",
    "columns",
    "folded",
    "human_bytes",
    "milliseconds",
    "paint",
    "plain_where_needed",
    "print_json",
    "progress",
    "ratio",
    "table",
    "warn",
]

BAR = 20
_UNITS = ("B", "KB", "MB", "GB", "TB")


_PLAIN = {
    "─": "-", "–": "-", "—": "-", "−": "-", "·": "*", "×": "x", "…": ".", "≤": "<", "≥": ">",
    "≈": "~", "±": "~", "→": ">", "█": "#", "│": "|", "µ": "u", "²": "2", "√": "v", "Σ": "S",
}  # fmt: skip
"""One character for one, so that columns still line up; others become a question mark."""


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each, "?") for each in wrong), error.end


def plain_where_needed() -> None:
    """From now on stdout and stderr write what their encoding lacks (cp1252, ASCII) in plain
    characters, rather than fail in the middle of a table."""
    codecs.register_error("secure-quant-plain", _replaced)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="secure-quant-plain")


Colour = Literal["bold", "green", "red", "yellow"]
_CODES = {"bold": 1, "red": 31, "green": 32, "yellow": 33}
LONGEST_NAME = 28


def columns() -> int:
    """Of the terminal, or what COLUMNS says; 80 where there is neither."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def paint(text: str, colour: Colour, stream: TextIO | None = None) -> str:
    """``text`` in colour where ``stream`` (stdout) is a terminal that nobody told otherwise
    (NO_COLOR, TERM=dumb)."""
    stream = sys.stdout if stream is None else stream
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def folded(text: str, hang: int = 2) -> str:
    """One paragraph that fits the terminal, lines after the first ``hang`` further in."""
    return textwrap.fill(
        text, columns(), subsequent_indent=" " * hang, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """Lines of aligned columns; the first ``left`` columns are text, the others numbers. What does
    not fit the terminal beside them stands below, behind the first column again."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = columns()
    if 2 + sum(widths) + 2 * (len(widths) - 1) > room:
        cells = [[_shortened(row[0]), *row[1:]] for row in cells]
        widths[0] = min(widths[0], LONGEST_NAME)
    parts, start = [], 0
    while start < len(widths):
        shown = list(range(left)) if start == 0 else [0]
        alone, more = len(shown), max(start, left)
        used = 2 + sum(widths[i] + 2 for i in shown)
        while more < len(widths) and (len(shown) == alone or used + widths[more] <= room):
            shown.append(more)
            used, more = used + widths[more] + 2, more + 1
        parts.append(_lines(cells, widths, shown, left))
        start = more
    return "\n\n".join(parts)


def _lines(
    cells: Sequence[Sequence[str]], widths: Sequence[int], shown: Sequence[int], left: int
) -> str:
    lines = [
        "  ".join(
            row[i].ljust(widths[i]) if i < left else row[i].rjust(widths[i]) for i in shown
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("─" * widths[i] for i in shown))
    return "\n".join(f"  {line}" for line in lines)


def _shortened(name: str) -> str:
    """Its ends, which tell more than its middle."""
    if len(name) <= LONGEST_NAME:
        return name
    head = LONGEST_NAME // 3
    return f"{name[:head]}…{name[head + 1 - LONGEST_NAME :]}"


def human_bytes(count: float | None) -> str:
    """Decimal units, three significant digits: ``65.4 KB``; a dash for None."""
    if count is None:
        return "–"
    size, unit = float(count), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    digits = 0 if unit == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {_UNITS[unit]}"


def milliseconds(value: float | None) -> str:
    """``8.21 ms``; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"


def ratio(part: float, whole: float) -> str:
    """``0.254``."""
    return f"{part / whole:.3f}"


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"{paint('warning:', 'yellow', sys.stderr)} {message}", file=sys.stderr)


def print_json(value: object) -> None:
    """One object on one line of stdout."""
    print(json.dumps(value, default=_plain, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    # numpy scalars and arrays know how to become Python's own.
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


class Progress:
    """One line on stderr for a step; on a terminal it lives while the step runs."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._note, self._part, self._unit = "", (0, 0), ""
        self._start = self._began = time.monotonic()
        """Of all, and of the stage that the note names."""
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def note(self, text: str) -> None:
        """What to show beside the label from now on."""
        self._note, self._part, self._began = text, (0, 0), time.monotonic()

    def part(self, done: int, of: int) -> None:
        """How much is done: on a terminal a bar, and the time left at this pace."""
        self._part = (done, of)

    def step(self, stage: str, done: int, of: int) -> None:
        """As a callback of the library: the stage, steps done, steps in all."""
        if stage != self._note:
            self.note(stage)
        self._part = (done, of) if of > 1 else (0, 0)

    def share(self, fraction: float, stage: str) -> None:
        """How much of the work is done, and what is worked on: on a terminal a bar, and the time
        left at this pace of the whole."""
        self._note = stage
        self._part, self._unit = (int(100 * fraction), 100), " %"

    def begin(self) -> None:
        """Show the line."""
        if self._terminal:
            self._thread.start()
        else:
            print(f"{self._label} ...", file=sys.stderr, flush=True)

    def end(self, outcome: str) -> None:
        """Close the line with the time it took."""
        self._done.set()
        took = f"{time.monotonic() - self._start:.1f} s"
        if self._terminal:
            self._thread.join()
            print(f"\r\x1b[K{self._label}: {outcome}, {took}", file=sys.stderr, flush=True)
        else:
            print(f"{self._label}: {outcome}, {took}", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self._done.wait(0.1):
            line = self.line(time.monotonic())[: columns() - 1]
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """What a terminal shows at that time of ``time.monotonic``."""
        done, of = self._part
        words = [self._label, "...", *([self._note] if self._note else [])]
        if of:
            full = BAR * min(done, of) // of
            words += [f"{'█' * full}{'·' * (BAR - full)}", f"{done}{self._unit or f'/{of}'}"]
        words.append(f"{now - self._start:.0f} s")
        if 0 < done < of:
            left = (now - self._began) / done * (of - done)
            words.append(f"({left:.0f} s left)" if left < 100 else f"({left / 60:.0f} min left)")
        return " ".join(words)


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Shows ``label`` on stderr while the block runs, and how it ended."""
    line = Progress(label)
    line.begin()
    try:
        yield line
    except BaseException:
        line.end("failed")
        raise
    line.end("done")
