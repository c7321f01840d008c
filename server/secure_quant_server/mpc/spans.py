"""Spans of the dealer: from the credit that an inference made room for to the last of its items."""

from __future__ import annotations

from collections import deque

from secure_quant import tracing

__all__ = ["Spans"]


class Spans:
    """Of one model in one session, whose items are handed out in the order of their credit."""

    def __init__(self) -> None:
        self._open: deque[tuple[int, tracing.Span]] = deque()
        self._granted = self._dealt = 0

    def begin(self, trace: str, model: str, items: int) -> None:
        """Credit for so many items came; ``trace`` as its message says it."""
        self._granted += items
        parent = tracing.parent_in([(tracing.HEADER, trace)])
        if parent and items:
            span = tracing.span("deal", "consumer", parent, model=model, items=items)
            self._open.append((self._granted, span))

    def end(self) -> None:
        """The session's: what is open will not be dealt."""
        while self._open:
            _, span = self._open.popleft()
            span.failed("UNAVAILABLE")
            span.end()

    def dealt(self) -> None:
        """An item went out to both parties."""
        self._dealt += 1
        while self._open and self._open[0][0] <= self._dealt:
            self._open.popleft()[1].end()
