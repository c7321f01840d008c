"""Whoever watches a request of theirs hears of it, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from clock import run
from unit.server.support import graph

from secure_quant.errors import Overloaded
from secure_quant.ir.course import Place
from secure_quant.mpc.protocol.plan import plan
from secure_quant_server.mpc import watches as module
from secure_quant_server.mpc.watches import Watches

GRAPH = graph()
PLAN = plan(GRAPH, streamed=True)


class Front:
    def __init__(self, most: int = 4) -> None:
        self.told: list[tuple[str, bool]] = []
        programs = {GRAPH.hash: SimpleNamespace(plan=PLAN)}
        self.watches = Watches(programs, lambda *told: self.told.append(told), most)  # type: ignore[arg-type]
        self.caller = "ann"

    @contextmanager
    def by(self, caller: str) -> Iterator[None]:
        before, self.caller = self.caller, caller
        yield
        self.caller = before


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Front:
    made = Front()
    monkeypatch.setattr(module, "current_caller", lambda: SimpleNamespace(name=made.caller))
    return made


async def heard(front: Front, key: str) -> list[Place]:
    return [place async for place in front.watches.watch(key)]


def test_the_latest_word_counts_until_the_request_is_over(front: Front) -> None:
    async def work() -> None:
        early = asyncio.ensure_future(heard(front, "a"))  # before the request itself
        await asyncio.sleep(1)
        with front.watches.serving("a", GRAPH.hash, 2):
            for rounds in (1, 2, 3):
                front.watches.stepped(("a",), rounds)
            await asyncio.sleep(1)
            front.watches.stepped(("a",), PLAN.rounds + 1)
            await asyncio.sleep(1)
        places = await early
        assert [place.rounds for place in places] == [3, PLAN.rounds + 1]
        assert {place.of for place in places} == {2 * PLAN.rounds}
        assert 0 < places[0].thousandths < 500 <= places[1].thousandths
        assert front.told == [("a", True), ("a", False)]

    run(work())


def test_nobody_hears_of_anothers_request(front: Front) -> None:
    async def work() -> None:
        with front.by("eve"):
            theirs = asyncio.ensure_future(heard(front, "a"))
            await asyncio.sleep(1)
        with front.watches.serving("a", GRAPH.hash, 1):
            front.watches.stepped(("a",), 1)
            front.watches.stepped(("unknown",), 1)
            front.watches.stepped((), 1)
            await asyncio.sleep(1)
        assert await theirs == []

    run(work())


def test_those_of_a_joined_job_all_hear_of_it(front: Front) -> None:
    async def work() -> None:
        asked = [asyncio.ensure_future(heard(front, key)) for key in "ab"]
        await asyncio.sleep(1)
        serving = front.watches.serving
        with serving("a", GRAPH.hash, 1), serving("b", GRAPH.hash, 3):
            front.watches.stepped(("a", "b"), PLAN.rounds)
            await asyncio.sleep(1)
        assert [place.of for (place,) in await asyncio.gather(*asked)] == [4 * PLAN.rounds] * 2

    run(work())


def test_watches_are_bounded_and_given_up(front: Front) -> None:
    async def work() -> None:
        asked = [asyncio.ensure_future(heard(front, f"{number}")) for number in range(4)]
        await asyncio.sleep(1)
        for key in ("9", "1"):
            with pytest.raises(Overloaded):
                await heard(front, key)
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert front.told[-4:] == [(f"{number}", False) for number in range(4)]

    run(work())
