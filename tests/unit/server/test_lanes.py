"""A front's lanes: shares that one lane got and another served, and lanes that do not start."""

import asyncio
import itertools
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from clock import run

from secure_quant.errors import ConfigError, DeadlineExceeded, MalformedMessage
from secure_quant.mpc.runtime.jobs import Answer, Job
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.transport import InsecurePlaintext
from secure_quant.wire.gen.share_inference_pb2 import InferRequest
from secure_quant_server.common import Budgets
from secure_quant_server.common import workers as workers_module
from secure_quant_server.common.messages import error_from_bytes
from secure_quant_server.mpc.board import Board
from secure_quant_server.mpc.config import LaneConfig
from secure_quant_server.mpc.desk import FrontDesk
from secure_quant_server.mpc.lanes import LaneHandle
from secure_quant_server.mpc.messages import Failed, Place, Retract, Share
from secure_quant_server.mpc.service import ShareInference

SHARE = bytes(24)


def config(security=None) -> LaneConfig:
    return LaneConfig(
        place=Place(party=1, lane=0, link="127.0.0.1:1", dealer="127.0.0.1:2"),
        options=LaneOptions(), security=security or InsecurePlaintext(), bundles=(),
    )  # fmt: skip


class Wire:
    """A pipe whose other end is a desk in the same loop."""

    def __init__(self) -> None:
        self.handle, self.desk = None, None

    def send(self, message: object) -> None:
        """Front to worker."""
        if isinstance(message, Job):
            self.desk.pushed(message)
        elif isinstance(message, Retract):
            self.desk.retracted(message.id)
        elif isinstance(message, Share):
            self.desk.arrived(message.ids, message.body)
        elif isinstance(message, Failed):
            self.desk.arrived(message.ids, None, error_from_bytes(message.body))


class Back:
    """The worker's end of it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def send(self, message: object) -> None:
        self.wire.handle.take(message)


def party_1(lanes: int) -> tuple[ShareInference, list[LaneHandle], list[FrontDesk], Board]:
    """A front of party 1 whose lanes' workers are desks alone."""
    board = Board(64, 2**20)
    handles, desks = [], []
    for _ in range(lanes):
        handle = LaneHandle(None, config(), board, lambda: None)
        wire = Wire()
        wire.handle, wire.desk = handle, FrontDesk(Back(wire))
        handle.worker = wire
        handles.append(handle)
        desks.append(wire.desk)
    options = SimpleNamespace(wait_s=2.0)
    chosen = SimpleNamespace(choose=lambda key: handles[int(key[:2], 16) % lanes])
    model = SimpleNamespace(graph=SimpleNamespace(input=SimpleNamespace(shape=(1,))))
    front = SimpleNamespace(
        board=board,
        lanes=chosen,
        options=options,
        party=1,
        models={"m": model},
        budgets=Budgets(None),
    )
    return ShareInference(front), handles, desks, board


def request(number: int) -> InferRequest:
    return InferRequest(
        request_id=number.to_bytes(16, "little"), model_hash="m", batch=1, share=SHARE
    )


def test_no_share_stays_where_it_was_pushed_whoever_serves_it() -> None:
    """Every third request is served by the lane it was pushed to, every third by the other one,
    every third by nobody."""

    async def work() -> None:
        service, handles, desks, board = party_1(2)
        served = []

        async def one(number: int) -> None:
            asked = request(number)
            key = asked.request_id.hex()
            job = Job("m", (key,), (1,), ("ann",), 0.3)
            answer = asyncio.ensure_future(service._posted(job, asked))
            await asyncio.sleep(0)
            lane = (number + number % 3) % 2
            if number % 3 < 2:
                share = await desks[lane].fetch(replace(job, wait_s=1.0))
                handles[lane].take(Answer((key,), (1,), 1, 1, 1, 1, share))
                assert (await answer).share == SHARE
                served.append(number)
            else:
                with pytest.raises(DeadlineExceeded):
                    await answer

        for start in range(0, 240, 30):
            await asyncio.gather(*(one(number) for number in range(start, start + 30)))
        assert len(served) == 160
        assert [desk.held for desk in desks] == [0, 0]
        assert [handle.pushed for handle in handles] == [0, 0]
        assert len(board) == 0

    run(work())


def test_the_board_compares_the_callers() -> None:
    async def work() -> None:
        board = Board(4, 2**20)
        job = Job("m", ("k",), (1,), ("eve",), 0.1)
        board.post(job, lambda: SHARE, len(SHARE))
        with pytest.raises(MalformedMessage, match="another caller"):
            await board.fetch(replace(job, callers=("ann",)))
        assert not board.claimed("k")
        assert await board.fetch(job) == SHARE

    run(work())


@pytest.mark.parametrize(
    "error", [ConfigError("certificate", got="half of it"), OSError(24, "Too many open files"),
              ValueError("unforeseen")],
)  # fmt: skip
def test_a_lane_that_does_not_start_is_tried_again(error: Exception, monkeypatch, caplog) -> None:
    monkeypatch.setattr(workers_module, "RESTART_S", (0.01, 0.04))
    tried: list[float] = []

    class Unwilling:
        async def start(self, number: int) -> None:
            tried.append(asyncio.get_running_loop().time())
            raise error

    async def work() -> None:
        handle = LaneHandle(Unwilling(), config(), None, lambda: None)
        running = asyncio.ensure_future(handle.run())
        while len(tried) < 6:
            await asyncio.sleep(0.005)
            assert not running.done()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    with caplog.at_level("INFO", "secure_quant"):
        run(work())
    lost = [record for record in caplog.records if record.getMessage() == "lane lost"]
    assert len(lost) >= 5
    pauses = [b - a for a, b in itertools.pairwise(tried)]
    assert min(pauses[2:]) >= 0.039  # they grew to the longest
