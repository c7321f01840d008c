"""The clock that other tests go by."""

import asyncio
import threading
import time

import clock
import pytest


def test_time_passes_only_while_nothing_can_run() -> None:
    async def work() -> list[tuple[float, str]]:
        loop, seen = asyncio.get_running_loop(), []

        async def after(seconds: float, what: str) -> None:
            await asyncio.sleep(seconds)
            seen.append((loop.time(), what))

        async def busy() -> None:
            for _ in range(1000):
                await asyncio.sleep(0)
            seen.append((loop.time(), "busy"))

        await asyncio.gather(after(3600.0, "late"), after(0.001, "soon"), busy())
        return seen

    begun = time.monotonic()
    assert clock.run(work(), 4000) == [(0.0, "busy"), (0.001, "soon"), (3600.0, "late")]
    assert time.monotonic() - begun < 600


def test_time_stands_still_while_a_thread_works() -> None:
    async def work() -> bool:
        go = threading.Event()
        working = asyncio.ensure_future(asyncio.to_thread(go.wait, 60))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(1e-9, working.cancel)
        threading.Timer(0.05, go.set).start()
        return await working

    assert clock.run(work())


def test_what_never_ends_is_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError):
        clock.run(asyncio.Event().wait(), 1e6)
    monkeypatch.setattr(clock, "HANGS_S", 0.01)

    async def work() -> None:
        go = threading.Event()
        try:
            await asyncio.wait_for(asyncio.to_thread(go.wait), 1.0)
        finally:
            go.set()

    with pytest.raises(RuntimeError, match="waits for the clock"):
        clock.run(work())
