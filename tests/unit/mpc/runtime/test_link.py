import asyncio
import time

import pytest
from clock import run
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.mpc.runtime.wires import Pair, protocol

from secure_quant.errors import DeadlineExceeded, MalformedMessage, PeerUnavailable
from secure_quant.mpc.runtime.carriers import Carrier
from secure_quant.mpc.runtime.jobs import Job
from secure_quant.mpc.runtime.link import CHUNK, LONGEST_S, LOOK_BYTES, TURN_S, PartyLink
from secure_quant.wire.gen.party_link_pb2 import (
    ExchangeRequest,
    ExchangeResponse,
    LinkBegin,
    LinkHello,
)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 5000), max_size=8))
def test_rounds_and_bytes_are_counted_exactly(sizes):
    async def work():
        async with Pair() as pair:
            runs = (link.drive(protocol(i, sizes)) for i, link in enumerate(pair.links))
            return await asyncio.gather(*runs)

    for _, meter in run(work()):
        assert (meter.rounds, meter.bytes_sent) == (len(sizes), sum(sizes))


def test_two_large_sends_at_once_do_not_block_each_other():
    """Each direction holds one frame; both parties send ten before either has read one."""
    sizes = [10 * CHUNK + 17, 3, CHUNK, CHUNK + 1]

    async def work():
        async with Pair() as pair:
            runs = (link.drive(protocol(i, sizes)) for i, link in enumerate(pair.links))
            return await asyncio.gather(*runs)

    first, second = run(work())
    assert first[1].bytes_sent == second[1].bytes_sent == sum(sizes)


@pytest.mark.parametrize("theirs", [9, 11, 3 * CHUNK])
def test_a_payload_of_another_length_is_refused(theirs):
    async def work():
        async with Pair() as pair:
            other = asyncio.ensure_future(pair.links[1].send(bytes(theirs)))
            try:
                await pair.links[0].send(bytes(10))
                await asyncio.wait_for(pair.links[0].receive(10), 0.2)
            finally:
                other.cancel()

    with pytest.raises((MalformedMessage, TimeoutError)) as caught:
        run(work())
    assert caught.type is (TimeoutError if theirs < 10 else MalformedMessage)


def test_an_empty_payload_is_refused():
    async def work():
        async with Pair() as pair:
            await pair.wires[1].write(ExchangeRequest(payload=b""))
            await pair.pumps[0]

    with pytest.raises(MalformedMessage, match="payload"):
        run(work())


def test_whoever_waits_learns_that_the_link_is_lost():
    async def work():
        async with Pair() as pair:
            waiting = asyncio.ensure_future(pair.links[0].receive(10))
            await asyncio.sleep(0)
            await pair.wires[1].end()
            with pytest.raises(PeerUnavailable, match="lost"):
                await waiting
            with pytest.raises(PeerUnavailable, match="lost"):
                await pair.links[0].receive(10)
            with pytest.raises(PeerUnavailable, match="closed"):
                await pair.pumps[0]

    run(work())


def test_a_protocol_that_fails_is_closed():
    closed = []

    def failing():
        try:
            yield b"x"
            raise MalformedMessage("mine")
        finally:
            closed.append(True)

    async def work():
        async with Pair() as pair:
            await asyncio.gather(
                pair.links[0].drive(failing()), pair.links[1].drive(protocol(1, [1]))
            )

    with pytest.raises((MalformedMessage, AssertionError)):
        run(work())
    assert closed == [True]


def test_the_first_frame_must_be_a_greeting():
    async def work():
        pair = Pair()
        await pair.wires[0].write(ExchangeRequest(payload=b"x"))
        await pair.links[1].greeted()

    with pytest.raises(MalformedMessage, match="first frame"):
        run(work())


def test_a_second_greeting_ends_the_link():
    async def work():
        async with Pair() as pair:
            await pair.links[0].greet(LinkHello())
            await pair.pumps[1]

    with pytest.raises(MalformedMessage, match="frame"):
        run(work())


def test_offers_and_refusals_reach_their_handlers_between_rounds():
    offers, refusals = [], []
    job = Job("m", ("61" * 16, "00"), (2, 3), ("ann", "bob"), 1.5)

    async def work():
        async with Pair() as pair:
            first, second = pair.links
            second.on_begin = lambda job, first_item: offers.append((job, first_item))
            refused = asyncio.get_running_loop().create_future()
            first.on_decline = lambda ids, error: refused.set_result((ids, error.what))
            runs = [link.drive(protocol(i, [5] * 20)) for i, link in enumerate(pair.links)]
            declined = second.decline(DeadlineExceeded("no share"), job.ids)
            await asyncio.gather(*runs, first.begin(job, 7), declined)
            refusals.append(await refused)

    run(work())
    assert offers == [(job, 7)]
    assert refusals == [(job.ids, "no share")]


def test_an_offer_asks_for_no_more_than_an_hour():
    async def work():
        async with Pair() as pair:
            offered = asyncio.get_running_loop().create_future()
            pair.links[1].on_begin = lambda job, _: offered.set_result(job)
            begin = LinkBegin(model_hash="m", wait_ms=2**32 - 1)
            await pair.wires[0].write(ExchangeRequest(begin=begin))
            return await offered

    assert run(work()) == Job("m", (), (), wait_s=LONGEST_S)


class Echoed(Carrier):
    """Gives every payload back: to the next look at it, or, where the peer is slow, to the loop."""

    def __init__(self, *, slow):
        super().__init__(ExchangeRequest)
        self.slow, self.looks, self._waiting, self._take = slow, 0, [], None

    def write(self, frame):
        self._waiting.append(ExchangeResponse(payload=frame.payload))
        if self.slow:
            asyncio.get_running_loop().call_soon(self._give)

    async def drain(self):
        pass

    async def read(self):
        raise NotImplementedError

    async def run(self, take):
        self._take = take
        await asyncio.Event().wait()

    def look(self, patience_s):
        self.looks += 1
        return not self.slow and self._give()

    def _give(self):
        self._take(self._waiting.pop(0))
        return True


def echoing(rounds, size=8):
    for number in range(rounds):
        payload = bytes([number % 256]) * size
        assert (yield payload) == payload
    return rounds


@pytest.mark.parametrize(
    ("slow", "size", "looks"), [(False, 8, 1000), (True, 8, 20), (False, LOOK_BYTES + 1, 0)]
)
def test_near_peers_are_looked_at_and_slow_ones_seldom(slow, size, looks):
    """Looked at: payloads 0, 2, 6, 14, 30 of 1000, and from 62 on every 64th."""

    async def work():
        carrier = Echoed(slow=slow or not looks)
        link = PartyLink(carrier)
        pump = asyncio.ensure_future(link.pump())
        await asyncio.sleep(0)
        assert (await link.drive(echoing(1000, size)))[0] == 1000
        pump.cancel()
        return carrier.looks

    assert run(work()) == looks


def test_the_loop_has_its_turn_though_every_payload_is_there_at_once():
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def slowly(rounds):
        for _ in range(rounds):
            time.sleep(TURN_S)
            yield b"x"

    async def work():
        link = PartyLink(Echoed(slow=False))
        tasks = [asyncio.ensure_future(each) for each in (link.pump(), other())]
        await asyncio.sleep(0)
        before = turns
        await link.drive(slowly(20))
        for task in tasks:
            task.cancel()
        return turns - before

    assert run(work()) >= 19
