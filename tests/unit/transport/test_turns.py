"""Whoever asks for much waits for itself."""

import asyncio
from collections import Counter
from contextlib import suppress

from clock import run

from secure_quant.transport import Turns


def test_callers_take_turns_and_each_ones_oldest_goes_first() -> None:
    async def work() -> None:
        turns, served = Turns(["only"]), []

        async def use(caller: str, number: int) -> None:
            thing = await turns.get(caller)
            served.append((caller, number))
            await asyncio.sleep(0)
            turns.put(thing)

        asked = [("eve", n) for n in range(6)] + [("ann", 0), ("bob", 0), ("ann", 1)]
        await asyncio.gather(*(use(*each) for each in asked))
        assert served == [
            ("eve", 0), ("eve", 1), ("ann", 0), ("bob", 0), ("eve", 2), ("ann", 1),
            ("eve", 3), ("eve", 4), ("eve", 5),
        ]  # fmt: skip

    run(work())


def test_what_was_used_last_goes_out_first_and_what_is_removed_never() -> None:
    async def work() -> None:
        turns = Turns([1, 2, 3])
        assert await turns.get("a") == 3
        turns.remove(2)
        turns.remove(7)
        turns.put(3)
        assert [await turns.get("a"), await turns.get("b")] == [3, 1]

    run(work())


def test_nothing_is_lost_with_those_who_give_up() -> None:
    async def work() -> None:
        turns, got = Turns([0, 1]), Counter()

        async def use(number: int) -> None:
            thing = await turns.get(f"caller {number % 3}")
            got[thing] += 1
            try:
                await asyncio.sleep(0.01)
            finally:
                turns.put(thing)

        tasks = [asyncio.ensure_future(use(number)) for number in range(60)]
        for number, task in enumerate(tasks):
            if number % 4 == 1:
                await asyncio.sleep(0.003)
                task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        # One that was given a thing and is cancelled before it runs again passes it on.
        held = [await turns.get("x"), await turns.get("x")]
        late = asyncio.ensure_future(turns.get("y"))
        await asyncio.sleep(0)
        turns.put(held.pop())
        late.cancel()
        with suppress(asyncio.CancelledError):
            await late
        turns.put(held.pop())
        assert sorted([await turns.get("x"), await turns.get("x")]) == [0, 1]
        assert not turns._waiting

    run(work())
