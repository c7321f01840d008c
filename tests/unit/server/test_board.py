"""Shares that wait for the other party: a seed stays one, and what is held is bounded."""

import asyncio
import gc
from collections.abc import Callable

import pytest
from unit.server.support import run

from secure_quant.errors import InternalError, MalformedMessage, Overloaded
from secure_quant.mpc.runtime.jobs import Job
from secure_quant_server.mpc.board import Board


def job(keys: str, batch: int = 1) -> Job:
    count = len(keys)
    return Job("model", tuple(keys), (batch,) * count, ("eve",) * count, 5.0)


def counted(made: list[str], name: str) -> Callable[[], bytes]:
    def share() -> bytes:
        made.append(name)
        return name.encode()

    return share


def test_a_share_is_made_when_it_is_fetched_and_once() -> None:
    async def test() -> None:
        board, made = Board(8, 100), []
        for name in ("a", "b", "c"):
            board.post(job(name, 2), counted(made, name), 32)
        assert made == []
        assert await board.fetch(job("ac", 2)) == b"ac"
        assert made == ["a", "c"]
        with pytest.raises(MalformedMessage):
            await board.fetch(job("a", 2))
        with pytest.raises(MalformedMessage):
            await board.fetch(job("b", 3))
        assert made == ["a", "c"]

    run(test)


def test_what_is_held_counts_and_is_given_back() -> None:
    async def test() -> None:
        board = Board(2, 100)
        board.post(job("a"), bytes, 60)
        with pytest.raises(Overloaded):
            board.post(job("b"), bytes, 60)
        board.post(job("b"), bytes, 40)
        with pytest.raises(Overloaded):
            board.post(job("c"), bytes, 0)
        board.remove("a")
        board.post(job("c"), bytes, 60)
        waiting = asyncio.create_task(board.fetch(job("d")))
        board.remove("b")
        await asyncio.sleep(0)
        board.post(job("d"), lambda: b"late", 40)
        assert await waiting == b"late"

    run(test)


def test_an_error_for_a_client_that_left_just_now_is_nobodys() -> None:
    async def test() -> None:
        said = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        board = Board(2, 100)
        board.post(job("a"), lambda: b"", 1)
        board.settle("a", InternalError("the lane's process ended"))
        board.remove("a")
        gc.collect()
        await asyncio.sleep(0)
        assert said == []

    run(test)
