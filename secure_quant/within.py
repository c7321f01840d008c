"""A limit of time around what an asyncio task does, with an error of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["within"]


@asynccontextmanager
async def within(
    seconds: float | None, exceeded: Callable[[], Exception]
) -> AsyncIterator[asyncio.Timeout]:
    """Raises what ``exceeded`` makes where the body takes longer; a TimeoutError of the body's own
    passes as it is."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        raise exceeded() from None
