"""How the C library's allocator treats freed memory, for processes that reuse large blocks."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["give_back_after_bursts", "give_back_freed_memory", "keep_freed_memory", "one_heap"]

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
"""Parameters of glibc's mallopt(3)."""

QUIET_S = 30.0
BURST = 2**26


def keep_freed_memory(trim_bytes: int = 2**28) -> bool:
    """Keep up to ``trim_bytes`` of freed memory in this process instead of handing it back.

    By default glibc maps every large block anew and gives it back when it is freed, so that each
    megabyte of a message or of material costs 256 page faults: up to a third of the dealer's time.
    The process does not grow by this: its peak stays what it was, and what it freed it uses again.
    Returns whether the allocator took the settings; on another C library nothing changes.
    """
    settings = ((TRIM_THRESHOLD, trim_bytes), (TOP_PAD, 2**24), (MMAP_THRESHOLD, 2**25))
    return _set(settings)


def one_heap() -> bool:
    """Let threads that start from now on allocate from the process's heap. Heaps of their own are
    of 64 MiB at most, and come and go with what is in them: a quarter of the time of a dealer whose
    material is large. To be called before any thread starts; returns as ``keep_freed_memory``."""
    return _set(((ARENA_MAX, 1),))


def _set(settings: Sequence[tuple[int, int]]) -> bool:
    mallopt = None
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken: list[int] = [mallopt(name, value) for name, value in settings]
    return min(taken) == 1


def give_back_freed_memory() -> bool:
    """Hand what the allocator holds free back to the system: after a burst of large messages.

    Returns whether something was; on another C library than glibc nothing is. See malloc_trim(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1


async def give_back_after_bursts(work: Callable[[], int]) -> None:
    """Until cancelled: when ``work``, a count of what was done, has stood still for ``QUIET_S``
    after it moved, and this process has grown by ``BURST`` bytes since it was called, hand back
    what is free. What every call needs is there from the first; a large batch's would stay."""
    most, before = resident() + BURST, work()
    while True:
        seen = work()
        await asyncio.sleep(QUIET_S)
        if work() == seen != before:
            before = seen
            if resident() > most:
                await asyncio.to_thread(give_back_freed_memory)


def resident() -> int:
    """Bytes of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
