"""What a burst left goes back to the system, once it is quiet."""

import asyncio
import mmap

import pytest
from clock import run

from secure_quant_server.common import memory

SIZE = 10 * memory.BURST


def test_memory_goes_back_once_after_a_burst_and_not_while_work_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[float] = []
    resident = [SIZE]
    work = [7]

    def give() -> bool:
        resident[0] = SIZE
        given.append(0.0)
        return True

    monkeypatch.setattr(memory, "give_back_freed_memory", give)
    monkeypatch.setattr(memory, "resident", lambda: resident[0])

    async def busy(seconds: int, grown: int) -> None:
        resident[0] = max(resident[0], SIZE + grown)
        for _ in range(seconds):
            work[0] += 1
            await asyncio.sleep(1.0)

    async def test() -> None:
        watching = asyncio.ensure_future(memory.give_back_after_bursts(lambda: work[0]))
        await asyncio.sleep(200.0)
        assert given == []
        await busy(200, 2 * memory.BURST)
        assert given == []
        await asyncio.sleep(200.0)
        assert len(given) == 1
        await busy(10, memory.BURST // 2)  # what it may grow by
        await asyncio.sleep(200.0)
        assert len(given) == 1
        await busy(1, 2 * memory.BURST)
        await asyncio.sleep(200.0)
        assert len(given) == 2
        watching.cancel()

    run(test())


def test_the_size_of_a_process_is_known() -> None:
    """Pages of the system itself: an allocator would reuse what earlier tests freed."""
    before = memory.resident()
    with mmap.mmap(-1, 2**26) as held:
        held.write(b"1" * len(held))
        assert 2**25 < memory.resident() - before < 2**28
