"""Two sessions of a lane inside one event loop, with a program whose answer is known."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from clock import run
from unit.mpc.runtime.wires import Pair

from secure_quant.errors import (
    DeadlineExceeded,
    HashMismatch,
    InternalError,
    MalformedMessage,
    MaterialExhausted,
    ModelNotFound,
    PeerUnavailable,
    ShapeMismatch,
)
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.runtime.hello import check_hello, make_hello
from secure_quant.mpc.runtime.jobs import Job
from secure_quant.mpc.runtime.session import AHEAD, LaneSession
from secure_quant.mpc.runtime.stock import Stock
from secure_quant.wire.gen.party_link_pb2 import ExchangeRequest, ExchangeResponse, LinkBegin

MODEL = "m"
SHAPE = (3,)


class Program:
    """Doubles the shares in four rounds, in each of which it sends the first byte of its seeds and
    checks that the peer used the items of the same indices."""

    def __init__(self, party: int) -> None:
        self.party = party
        self.graph = SimpleNamespace(input=SimpleNamespace(shape=SHAPE))
        cost = SimpleNamespace(offline_bytes_party0=32, offline_bytes_party1=100)
        self.plan = SimpleNamespace(cost=lambda _: cost, expanded_bytes=100, streamed=False)

    def prepare(self, items, pace):
        pace()
        return [item.take()[0][:1] for item in items]

    def run(self, share, ready):
        assert len(ready) == len(share)
        for _ in range(4):
            message = b"".join(ready)
            if (yield message) != message:
                raise MalformedMessage("the parties used different material")
        return share * np.uint64(2)


class Dealer:
    """Fills a stock once, then stays silent until it is told to fail."""

    def __init__(self, stock: Stock, party: int, items: int) -> None:
        for index in range(items):
            stock.put(MODEL, index, Item(party, bytes([index]) * 32))
        self.failed = asyncio.get_running_loop().create_future()

    async def pump(self):
        await self.failed


class Desk:
    """``put`` is a client's share, or what goes wrong with it."""

    def __init__(self) -> None:
        self._shares, self.answers, self.errors, self.jobs = {}, {}, {}, []
        self._asked, self._news = set(), asyncio.Condition()

    async def put(self, number, share):
        async with self._news:
            self._shares[job(number).ids] = share
            self._news.notify_all()

    async def fetch(self, job):
        self.jobs.append(job)
        async with self._news:
            self._asked.add(job.ids)
            self._news.notify_all()
            await self._news.wait_for(lambda: job.ids in self._shares)
        share = self._shares[job.ids]
        if isinstance(share, Exception):
            raise share
        return share

    async def asked(self, number):
        """Returns once a share was asked for."""
        async with self._news:
            await self._news.wait_for(lambda: job(number).ids in self._asked)

    async def answered(self, number):
        while job(number).ids not in self.answers:
            await asyncio.sleep(0)
        return self.answers[job(number).ids]

    def deliver(self, answer):
        self.answers[answer.ids] = answer

    def fail(self, job, error):
        self.errors[job.ids] = error


class Lane:
    def __init__(self, items=30, program=Program, **options) -> None:
        self.pair, self.desk = Pair(), Desk()
        self.sessions, self.dealers, self.stocks = [], [], []
        for party, link in enumerate(self.pair.links):
            stock = Stock(party, {MODEL: (40, 0)})
            dealer = Dealer(stock, party, items)
            self.stocks.append(stock)
            desk = self.desk if party else None
            self.dealers.append(dealer)
            self.sessions.append(
                LaneSession(
                    party, {MODEL: program(party)}, link, dealer, stock, desk=desk, **options
                )
            )

    async def __aenter__(self):
        self.runs = [asyncio.ensure_future(each.run()) for each in self.sessions]
        return self

    async def __aexit__(self, *_):
        for each in self.runs:
            each.cancel()
        await asyncio.gather(*self.runs, return_exceptions=True)

    async def rehearsed(self):
        await asyncio.gather(*(each.ready.wait() for each in self.sessions))

    async def infer(self, number, samples=1, wait_s=2.0):
        return await self.sessions[0].infer(job(number, samples, wait_s, share=shares(samples)))


def job(number, samples=1, wait_s=2.0, model=MODEL, share=b""):
    return Job(model, (f"{number:02x}" * 16,), (samples,), ("ann",), wait_s, share)


def shares(samples=1):
    return bytes(range(samples * 3))


def test_rehearses_and_answers_in_any_batch():
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            for number, samples in enumerate((1, 3, 1, 8)):
                await lane.desk.put(number, shares(samples))
                answer = await lane.infer(number, samples)
                expected = np.frombuffer(shares(samples), np.uint8).astype("<u8") * 2
                assert answer.share == expected.tobytes()
                assert (answer.ids, answer.batches) == (job(number).ids, (samples,))
                assert (answer.rounds, answer.bytes_sent) == (4, 4 * samples)
                assert answer.offline_bytes == 32 * samples
                theirs = await lane.desk.answered(number)
                assert theirs.share == expected.tobytes()
                assert theirs.offline_bytes == 100 * samples

    run(work())


def test_an_offer_without_a_share_holds_up_nobody():
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            lonely = asyncio.ensure_future(lane.infer(1))
            await lane.desk.asked(1)
            for number in range(2, 8):
                await lane.desk.put(number, shares())
                await lane.infer(number)
            assert not lonely.done()
            await lane.desk.put(1, DeadlineExceeded("no share"))
            with pytest.raises(DeadlineExceeded, match="no share"):
                await lonely
            assert lane.sessions[0].ready.is_set()

    run(work())


def test_a_share_of_the_wrong_length_costs_its_own_request_alone():
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            await lane.desk.put(1, shares(2))
            with pytest.raises(ShapeMismatch, match="6 elements"):
                await lane.infer(1)
            assert isinstance(lane.desk.errors[job(1).ids], ShapeMismatch)
            with pytest.raises(ShapeMismatch):
                await lane.sessions[0].infer(job(2, share=shares(2)))
            with pytest.raises(ModelNotFound):
                await lane.sessions[0].infer(job(2, model="x", share=shares()))
            await lane.desk.put(3, shares())
            await lane.infer(3)

    run(work())


def test_what_no_one_foresaw_costs_its_job_and_is_logged(caplog):
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            await lane.desk.put(1, KeyError("a client's secret"))
            with pytest.raises(InternalError, match="other party's lane"):
                await lane.infer(1)
            assert "job failed: KeyError" in caplog.text
            assert "secret" not in caplog.text
            await lane.desk.put(2, shares())
            await lane.infer(2)
            assert all(each.ready.is_set() for each in lane.sessions)

    run(work())


@pytest.mark.parametrize("callers", [[], ["ann", "ann"]])
def test_an_offer_names_one_caller_for_each_request(callers):
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            await lane.desk.put(1, shares())
            declined = asyncio.get_running_loop().create_future()
            lane.pair.links[0].on_decline = lambda ids, _: declined.set_result(ids)
            begin = LinkBegin(model_hash=MODEL, request_ids=[b"\1" * 16], batches=[1], wait_ms=1000)
            begin.callers.extend(callers)
            await lane.pair.wires[0].write(ExchangeRequest(begin=begin))
            assert await declined == job(1).ids

    run(work())


def test_the_offer_carries_who_asked():
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            await lane.desk.put(1, shares())
            await lane.infer(1)
            assert lane.desk.jobs[-1].callers == ("ann",)

    run(work())


@pytest.mark.parametrize("which", ["link", "dealer 0", "dealer 1"])
def test_whatever_breaks_fails_every_request_and_ends_both_sessions(which):
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            waiting = asyncio.ensure_future(lane.infer(1))
            await lane.desk.asked(1)
            if which == "link":
                for wire in lane.pair.wires:
                    await wire.end()
            else:
                lane.dealers[int(which[-1])].failed.set_exception(PeerUnavailable("dealer"))
                side = int(which[-1])
                with pytest.raises(PeerUnavailable, match="dealer"):
                    await lane.runs[side]
                await lane.pair.wires[side].end()
            for session in lane.runs:
                with pytest.raises(PeerUnavailable):
                    await session
            with pytest.raises(PeerUnavailable):
                await waiting
            assert not any(each.ready.is_set() for each in lane.sessions)
            assert all(each.held(MODEL) == 0 for each in lane.stocks)

    run(work())


def test_material_that_ran_out_costs_the_request_not_the_session():
    async def work():
        async with Lane(items=8) as lane:
            await lane.rehearsed()
            await lane.desk.put(1, shares(20))
            with pytest.raises(MaterialExhausted, match="material"):
                await lane.infer(1, samples=20, wait_s=0.2)
            assert isinstance(lane.desk.errors[job(1).ids], MaterialExhausted)
            await lane.desk.put(2, shares())
            await lane.infer(2)

    run(work())


def test_party_1_cannot_make_party_0_run_what_it_did_not_offer():
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            begin = LinkBegin(model_hash=MODEL, request_ids=[b"x" * 16], batches=[1], first_item=2)
            await lane.pair.wires[1].write(ExchangeResponse(begin=begin))
            await lane.runs[0]

    with pytest.raises(MalformedMessage, match="offer"):
        run(work())


@pytest.mark.parametrize("batches", [[], [0], [1, 1], [2**31]])
def test_party_1_declines_an_offer_that_makes_no_sense(batches):
    async def work():
        async with Lane() as lane:
            await lane.rehearsed()
            await lane.desk.put(1, shares())
            declined = asyncio.get_running_loop().create_future()
            lane.pair.links[0].on_decline = lambda ids, _: declined.set_result(ids)
            begin = LinkBegin(
                model_hash=MODEL,
                request_ids=[b"\1" * 16],
                batches=batches,
                wait_ms=1000,
                callers=["ann"],
            )
            await lane.pair.wires[0].write(ExchangeRequest(begin=begin))
            assert await declined == job(1).ids

    run(work())


def test_greetings_must_agree():
    programs = {MODEL: Program(0)}
    check_hello(make_hello(b"i" * 16, 2, programs), 2, programs)
    with pytest.raises(MalformedMessage, match="lane"):
        check_hello(make_hello(b"i" * 16, 1, programs), 2, programs)
    with pytest.raises(MalformedMessage, match="session id"):
        check_hello(make_hello(b"i" * 15, 2, programs), 2, programs)
    with pytest.raises(HashMismatch, match="different models"):
        check_hello(make_hello(b"i" * 16, 2, {"other": Program(0)}), 2, programs)
    other = make_hello(b"i" * 16, 2, programs)
    other.protocol += 1
    with pytest.raises(MalformedMessage, match="protocol"):
        check_hello(other, 2, programs)


def test_one_caller_keeps_the_others_waiting_for_a_few_of_its_jobs_alone() -> None:
    async def work() -> None:
        async with Lane(items=40) as lane:
            await lane.rehearsed()
            done: list[str] = []

            async def ask(number: int, caller: str) -> None:
                asked = replace(job(number, share=shares()), callers=(caller,))
                await lane.sessions[0].infer(asked)
                done.append(caller)

            for number in range(30):
                await lane.desk.put(number, shares())
            hers = [asyncio.ensure_future(ask(number, "eve")) for number in range(25)]
            await lane.desk.asked(24)  # all of them are there
            await asyncio.gather(*(ask(number, "ann") for number in range(25, 28)))
            assert done.count("eve") <= AHEAD + 6
            await asyncio.gather(*hers)
            assert len(done) == 28

    run(work())


def test_a_job_that_gets_no_material_gives_its_turn_back() -> None:
    async def work() -> None:
        async with Lane(items=AHEAD + 4) as lane:
            await lane.rehearsed()
            for number in range(20):
                await lane.desk.put(number, shares(2))
            late = [lane.infer(number, samples=2, wait_s=0.2) for number in range(2 * AHEAD)]
            ends = await asyncio.gather(*late, return_exceptions=True)
            assert sum(isinstance(each, MaterialExhausted) for each in ends) > AHEAD
            await lane.desk.put(20, shares())
            assert (await lane.infer(20)).ids == job(20).ids  # one item was left

    run(work())
