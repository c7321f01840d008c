"""A pairing at the server, without a network: one loop, its two threads, and a client's half."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import pytest
from patience import ample

from secure_quant.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InternalError,
    MalformedMessage,
    MaterialReused,
    Overloaded,
    SecureQuantError,
)
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.plan import plan
from secure_quant.onehost.program import Host, Item
from secure_quant.onehost.stream import Inbox, drive
from secure_quant.wire.gen.one_host_pb2 import PairMake, PairRequest
from secure_quant_server.onehost.session import UNREAD, Bounds, Served, Session
from secure_quant_server.onehost.stock import Stock
from tests.unit.mpc.protocol import graphs

GRAPH = graphs.single()
PLAN = plan(GRAPH)
SERVED = Served(GRAPH.hash, PLAN, Host(GRAPH, PLAN))


def bounds(step_s: float, charge: Any = lambda _: None) -> Bounds:
    return Bounds(
        samples=2, step_s=step_s, idle_s=ample(60), turn=nullcontext, charge=charge,
        noted=lambda *_: None, answered=lambda *_: None,
    )  # fmt: skip


class Client:
    """What it hears is kept; ``ended`` waits for what ends the stream."""

    def __init__(self, session: Session) -> None:
        self.session, self.frames = session, asyncio.Queue[PairRequest]()
        self.inbox, self.heard = Inbox(2**40), asyncio.Queue[Any]()
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.create_task(self._listen())

    async def _said(self) -> AsyncIterator[PairRequest]:
        while True:
            yield await self.frames.get()

    async def _listen(self) -> None:
        async for answer in self.session.answers(self._said()):
            if answer.WhichOneof("message") == "ahead":
                self.inbox.feed(answer.ahead)
            else:
                self.heard.put_nowait(answer)

    async def pair(self) -> None:
        def send(piece: bytes) -> None:
            self.loop.call_soon_threadsafe(self.frames.put_nowait, PairRequest(ahead=piece))

        run = Pairing.make(0)
        await asyncio.to_thread(drive, run, send, self.inbox, lambda: ample(20))

    def make(self) -> None:
        self.frames.put_nowait(PairRequest(make=PairMake(item=1, batch=1)))

    async def ended(self) -> SecureQuantError:
        with pytest.raises(SecureQuantError) as found:
            async with asyncio.timeout(ample(30)):
                await self.task
        return found.value


def test_whoever_does_not_read_is_not_sent_more() -> None:
    async def main() -> None:
        session = Session(SERVED, bounds(step_s=ample(1.0)))
        client = Client(session)
        await client.pair()
        session._unsent += 2**21  # as if it lay in the transport
        client.make()
        error = await client.ended()
        assert isinstance(error, DeadlineExceeded)
        assert "read within" in str(error)

    asyncio.run(main())


def test_what_was_read_is_counted_down() -> None:
    async def main() -> None:
        session = Session(SERVED, bounds(step_s=ample(20)))
        client = Client(session)
        await client.pair()
        client.make()
        async with asyncio.timeout(ample(30)):
            assert (await client.heard.get()).WhichOneof("message") == "opened"
            assert (await client.heard.get()).making.item == 1
        await asyncio.sleep(0)
        session.end(MalformedMessage("over"))
        await client.ended()
        assert session._unsent < UNREAD

    asyncio.run(main())


def test_a_refusal_gives_the_number_back() -> None:
    async def main() -> None:
        left = [BudgetExceeded("samples")]

        def charge(samples: int) -> None:
            if left:
                raise left.pop()

        client = Client(Session(SERVED, bounds(step_s=ample(20), charge=charge)))
        await client.pair()
        client.make()
        client.make()
        async with asyncio.timeout(ample(30)):
            kinds = [(await client.heard.get()).WhichOneof("message") for _ in range(3)]
        assert kinds == ["opened", "refused", "making"]
        client.session.end(MalformedMessage("over"))
        await client.ended()

    asyncio.run(main())


def test_the_unforeseen_ends_the_pairing_and_says_nothing() -> None:
    def charge(samples: int) -> None:
        raise RuntimeError("a secret")

    async def main() -> None:
        client = Client(Session(SERVED, bounds(step_s=ample(20), charge=charge)))
        await client.pair()
        client.make()
        error = await client.ended()
        assert isinstance(error, InternalError)
        assert "secret" not in str(error)

    asyncio.run(main())
    left = [thread for thread in threading.enumerate() if thread.name.startswith("pairing-")]
    for thread in left:
        thread.join(ample(10))
        assert not thread.is_alive()


def item(number: int) -> Item:
    return Item(number, 1, {}, {})


def test_an_item_is_given_out_once() -> None:
    stock = Stock(2)
    stock.begin(1, 1)
    stock.begin(2, 1)
    with pytest.raises(Overloaded):
        stock.begin(3, 1)
    assert stock.claim(1) == 1  # while it is being made
    stock.begin(3, 1)  # there is room again
    stock.put(item(1))
    assert stock.take(1, 1.0).number == 1
    with pytest.raises(DeadlineExceeded):
        stock.take(1, 0.01)
    for again in (stock.claim, stock.drop):
        with pytest.raises(MaterialReused):
            again(1)
        with pytest.raises(MalformedMessage):
            again(9)
    stock.drop(2)  # while it is being made
    with pytest.raises(MaterialReused):
        stock.claim(2)
    stock.put(item(2))
    assert not stock._items
    with pytest.raises(MaterialReused):
        stock.claim(2)
    stock.begin(4, 1)
    stock.undo(4)
    with pytest.raises(MalformedMessage):
        stock.claim(4)
    stock.close()
    stock.put(item(3))
    assert not stock._items


def test_who_does_not_take_the_reason_for_the_end_is_cut_off() -> None:
    """A transport without room holds the stream up where it hands the first answer over."""

    async def test() -> None:
        session = Session(SERVED, bounds(0.2))
        let_go = []

        async def stuck() -> None:
            async def silent() -> AsyncIterator[PairRequest]:
                await asyncio.Event().wait()
                yield PairRequest()

            try:
                async for _ in session.answers(silent()):
                    await asyncio.Event().wait()
            finally:
                let_go.append(True)

        task = asyncio.create_task(stuck())
        await asyncio.sleep(0.05)
        session.end(DeadlineExceeded("an idle pairing"))
        await asyncio.wait([task], timeout=ample(10))
        assert task.cancelled()
        assert let_go == [True]

    asyncio.run(test())


def test_a_pairing_that_ended_in_order_is_not_cut() -> None:
    async def test() -> None:
        client = Client(session := Session(SERVED, bounds(0.1)))
        await asyncio.sleep(0)
        session.end(DeadlineExceeded("an idle pairing"))
        assert type(await client.ended()) is DeadlineExceeded
        await asyncio.sleep(0.3)
        assert session._cut is None or session._cut.cancelled()
        assert not client.task.cancelled()

    asyncio.run(test())
