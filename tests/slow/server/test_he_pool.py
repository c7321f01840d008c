"""A pool of evaluation processes: what a death costs, who is asked again, how it stops."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from patience import ample

from secure_quant.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedMessage,
    MalformedModel,
    PeerUnavailable,
)
from secure_quant_server.common.workers import WorkerKind
from secure_quant_server.he.frames import ANSWERS
from secure_quant_server.he.pool import Pool

MODULE = "slow.server.worker_entries"
LIMIT_S = ample(30.0)
KIND = WorkerKind(name="t", entry=f"{MODULE}:evaluate", modules=(MODULE,), answers=ANSWERS)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@asynccontextmanager
async def pool(
    workers: int = 1, limit_s: float = LIMIT_S, bundles=(b"a", b"b")
) -> AsyncIterator[Pool]:
    made = Pool(bundles, workers, KIND, limit_s=limit_s)
    try:
        assert await made.start() == [bundle.upper() for bundle in bundles]
        while len(made.pids) < workers:
            await asyncio.sleep(0.01)
        yield made
    finally:
        await made.stop()


async def ask(made: Pool, data: bytes) -> bytes:
    return await made.evaluate(0, 0, 1, data)


def run(work):
    return asyncio.run(asyncio.wait_for(work, ample(60)))


@pytest.mark.parametrize("how", [b"crash", b"unforeseen"])
def test_a_request_that_ends_its_worker_costs_itself_and_is_not_tried_on_another(
    how, capfd
) -> None:
    async def work() -> None:
        async with pool(3) as made:
            before = set(made.pids)
            with pytest.raises(InternalError, match="may be sent again"):
                await ask(made, how)
            assert len(before & set(made.pids)) == 2
            answers = await asyncio.gather(*(ask(made, b"%d" % n) for n in range(10, 30)))
            assert answers == [(b"%d" % n)[::-1] for n in range(10, 30)]

    run(work())
    said = capfd.readouterr().err
    assert "secret" not in said
    assert "Traceback" not in said


def test_a_request_that_its_worker_never_looked_at_goes_to_another() -> None:
    async def work() -> None:
        async with pool(2) as made:
            for _ in range(5):
                victim = made._idle._idle[-1].pid  # the one that is asked next
                os.kill(victim, signal.SIGSTOP)
                asked = asyncio.ensure_future(ask(made, b"ab"))
                await asyncio.sleep(0.05)
                assert not asked.done()
                os.kill(victim, signal.SIGKILL)
                assert await asked == b"ba"
                while len(made.pids) < 2:
                    await asyncio.sleep(0.01)

    run(work())


def test_named_errors_and_deadlines() -> None:
    async def work() -> None:
        async with pool(1) as made:
            (pid,) = made.pids
            with pytest.raises(MalformedMessage, match="ciphertexts"):
                await ask(made, b"malformed")
            assert made.pids == [pid]
            made._limit = 0.5
            with pytest.raises(DeadlineExceeded, match="evaluation"):
                await ask(made, b"endless")
            made._limit = LIMIT_S
            assert await ask(made, b"ab") == b"ba"
            assert made.pids != [pid]

    run(work())


def test_a_caller_that_goes_away_leaves_the_worker_in_order() -> None:
    async def work() -> None:
        async with pool(1) as made:
            (pid,) = made.pids
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask(made, b"slow"), 0.1)
            assert await ask(made, b"ab") == b"ba"
            assert made.pids == [pid]

    run(work())


def test_a_model_that_cannot_be_loaded_is_said_at_the_start() -> None:
    async def work() -> None:
        async with pool(2, bundles=(b"a", b"malformed")):
            raise AssertionError("it started")

    with pytest.raises(MalformedModel):
        run(work())


def test_drained_means_answered_and_closed() -> None:
    async def work() -> None:
        async with pool(1) as made:
            asked = [asyncio.ensure_future(ask(made, b"slow")) for _ in range(2)]
            await asyncio.sleep(0)  # they are in
            draining = asyncio.ensure_future(made.drain())
            await asyncio.sleep(0)
            with pytest.raises(PeerUnavailable, match="stopping"):
                await ask(made, b"ab")
            done, _ = await asyncio.wait([draining, *asked], return_when=asyncio.FIRST_COMPLETED)
            assert draining not in done
            await draining
            assert await asyncio.gather(*asked) == [b"wols", b"wols"]

    run(work())
