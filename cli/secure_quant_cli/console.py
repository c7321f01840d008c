"""What the commands print: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import codecs
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = [
    "Progress",
    "human_bytes",
    "milliseconds",
    "plain_where_needed",
    "print_json",
    "progress",
    "ratio",
    "table",
    "warn",
]

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


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """Lines of aligned columns; the first ``left`` columns are text, the others numbers."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(f"  {line}" for line in lines)


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
    print(f"warning: {message}", file=sys.stderr)


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
        self._note = ""
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def note(self, text: str) -> None:
        """What to show beside the label from now on, such as ``12/64``."""
        self._note = text

    def step(self, stage: str, done: int, of: int) -> None:
        """As a callback of the library: the stage, steps done, steps in all."""
        self.note(f"{stage} {done}/{of}" if of > 1 else stage)

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
            seconds = time.monotonic() - self._start
            line = f"\r\x1b[K{self._label} ... {self._note} {seconds:.0f} s"
            print(line, end="", file=sys.stderr, flush=True)


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
