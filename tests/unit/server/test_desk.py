"""Party 1's desk: whatever order shares, retractions and jobs come in, a job gets its share or a
named error, and nothing stays."""

import asyncio
import itertools
from contextlib import suppress
from dataclasses import replace

import pytest
from clock import run

from secure_quant.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedMessage,
    SecureQuantError,
)
from secure_quant.mpc.runtime.jobs import Answer, Job
from secure_quant_server.mpc.desk import CLAIM_S, EARLY, FrontDesk
from secure_quant_server.mpc.messages import Claimed

SHARE = bytes(range(3))


class Front:
    """Remembers what the desk sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, message: object) -> None:
        self.sent.append(message)

    def kinds(self) -> list[str]:
        return [type(message).__name__ for message in self.sent]


def job(*numbers: int, caller: str = "ann", wait_s: float = 1.0) -> Job:
    ids = tuple(map(key, numbers))
    return Job("m", ids, (1,) * len(ids), (caller,) * len(ids), wait_s)


def key(number: int) -> str:
    return (bytes([number]) * 16).hex()


def early(number: int, caller: str = "ann", batch: int = 1) -> Job:
    return Job("m", (key(number),), (batch,), (caller,), share=SHARE)


def test_a_share_taken_back_before_the_job_resumes_declines_that_job() -> None:
    """The order that once ended the lane's session: want, early, retract, and only then fetch."""

    async def work() -> None:
        front = Front()
        desk = FrontDesk(front)
        waiting = asyncio.ensure_future(desk.fetch(job(1)))
        await asyncio.sleep(0)
        assert front.kinds() == ["Job"]
        desk.pushed(early(1))
        desk.retracted(key(1))
        with pytest.raises(DeadlineExceeded, match="gave up"):
            await waiting
        assert desk.held == 0

    run(work())


def test_every_order_of_events_ends_in_a_share_or_a_named_error() -> None:
    events = ("fetch", "early", "retract", "turn", "turn", "missing", "share")

    async def one(order: tuple[str, ...]) -> None:
        desk, task = FrontDesk(Front()), None
        for event in order:
            if event == "fetch":
                task = asyncio.ensure_future(desk.fetch(job(1)))
            elif event == "early":
                desk.pushed(early(1))
            elif event == "retract":
                desk.retracted(key(1))
            elif event == "missing":
                desk.arrived((key(1),), None, DeadlineExceeded("no share"))
            elif event == "share":
                desk.arrived((key(1),), SHARE)
            else:
                await asyncio.sleep(0)
        for _ in range(4):  # an early that comes after everything
            await asyncio.sleep(0)
        if not task.done():
            desk.arrived((key(1),), None, DeadlineExceeded("no share"))
        with suppress(SecureQuantError):
            assert await task == SHARE
        desk.retracted(key(1))  # what the front sends once its client is gone
        assert desk.held == 0

    async def work() -> None:
        for order in set(itertools.permutations(events)):
            await one(order)

    run(work())


def test_a_share_of_another_caller_is_refused() -> None:
    async def work() -> None:
        front = Front()
        desk = FrontDesk(front)
        desk.pushed(early(1, caller="eve"))
        with pytest.raises(MalformedMessage, match="another caller"):
            await desk.fetch(job(1))
        desk.pushed(early(2, batch=2))
        with pytest.raises(MalformedMessage, match="another model or batch"):
            await desk.fetch(job(2))
        assert front.kinds() == []  # nothing was claimed
        desk.pushed(early(3))
        assert await desk.fetch(job(3)) == SHARE
        await asyncio.sleep(2 * CLAIM_S)
        assert front.kinds() == ["Claimed"]

    run(work())


@pytest.mark.parametrize("failed", [False, True])
def test_a_job_that_is_answered_soon_says_nothing_of_its_shares(failed: bool) -> None:
    async def work() -> None:
        front = Front()
        desk = FrontDesk(front)
        for number in range(2):
            desk.pushed(early(number))
            assert await desk.fetch(job(number)) == SHARE
        if failed:
            desk.fail(job(0), DeadlineExceeded("no material"))
        else:
            desk.deliver(Answer((key(0),), (1,), 1, 1, 1, 1, b"answer"))
        await asyncio.sleep(2 * CLAIM_S)
        assert front.kinds() == ["Failed" if failed else "Answer", "Claimed"]
        assert front.sent[1] == Claimed((key(1),))

    run(work())


def test_a_front_that_has_gone_is_told_of_no_shares() -> None:
    class Gone(Front):
        def send(self, message: object) -> None:
            super().send(message)
            raise InternalError("gone")

    async def work() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, about: failures.append(about))
        front = Gone()
        desk = FrontDesk(front)
        desk.pushed(early(1))
        assert await desk.fetch(job(1)) == SHARE
        await asyncio.sleep(2 * CLAIM_S)
        assert front.kinds() == ["Claimed"]
        assert failures == []

    run(work())


def test_the_desk_is_bounded_and_a_job_that_waits_gets_its_share_all_the_same() -> None:
    async def work() -> None:
        desk = FrontDesk(Front())
        waiting = asyncio.ensure_future(desk.fetch(job(1)))
        await asyncio.sleep(0)
        for number in range(EARLY + 50):
            desk.pushed(replace(early(0), ids=(f"{number:032x}",)))
        assert desk.held == EARLY
        desk.pushed(early(1))
        assert await waiting == SHARE
        assert desk.held == EARLY

    run(work())
