"""Streamed models: material is made, sent and expanded gate by gate while a sample runs."""

from __future__ import annotations

import asyncio
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from clock import run
from unit.mpc.protocol import graphs
from unit.mpc.runtime.wires import Pair as Wires

from conformance.builder import Net
from conformance.order_cases import largest_of_many
from conformance.port_cases import secret_tables
from conformance.sum_cases import rounded_and_not_clipped
from secure_quant import Graph, reference
from secure_quant.errors import MalformedMessage, MaterialExhausted, MaterialReused
from secure_quant.keystream import Keystream
from secure_quant.mpc.protocol.bundle import load_client, load_dealer, load_party, split
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.protocol.plan import STREAM_BYTES, MpcPlan, plan
from secure_quant.mpc.runtime.feed import Feed, Sample
from secure_quant.mpc.runtime.link import Meter

CHUNK = 2**20


class Roles:
    """The three programs of a graph, and a dealer that sends as the window allows."""

    def __init__(self, graph: Graph, pool: ThreadPoolExecutor) -> None:
        bundles = split(graph, streamed=True)
        self.parties = [load_party(bundles[f"party{i}"]) for i in range(2)]
        self.dealer = load_dealer(bundles["dealer"])
        self.plan, self.pool = self.dealer.plan, pool
        sizes = [8 * gate.dealt_words for gate in self.plan.order if gate.dealt_words]
        self.feed = Feed(sizes, self.plan.window_bytes)
        self.credit, self.granted = self.plan.window_bytes, asyncio.Event()
        self.feed.on_credit = self.grant

    def grant(self, size: int) -> None:
        self.credit += size
        self.granted.set()

    async def deal(self, index: int, corrections) -> None:
        place = 0
        if self.feed.size:
            self.feed.begin(index)
        for part in corrections:
            for start in range(0, len(part), CHUNK):
                data = bytes(part[start : start + CHUNK])
                while self.credit < len(data):
                    self.granted.clear()
                    await self.granted.wait()
                self.credit -= len(data)
                self.feed.add(index, place, data)
                place += len(data)

    async def infer(self, q: np.ndarray, index: int = 0) -> tuple[np.ndarray, Meter]:
        """One sample."""
        item = self.dealer.deal_gates()
        first = np.random.default_rng(index).integers(0, 256, q.shape, np.uint8)
        shares = (first, q.view(np.uint8) ^ first)
        samples = []
        for party, seed in enumerate((item.seed0, item.seed1)):
            mine = Item(party, seed)

            async def take(offset: int, size: int) -> memoryview:
                return await self.feed.take(index, offset, size, 10.0)

            async def there(mine: Item = mine) -> Item:
                return mine

            corrections = take if party else None
            samples.append(Sample(self.parties[party], there, corrections, self.pool))
        async with Wires() as wires:
            (one, meter), (two, _), _ = await asyncio.gather(
                *(
                    link.drive(program.run(share, sample))
                    for link, program, share, sample in zip(
                        wires.links, self.parties, shares, samples, strict=True
                    )
                ),
                self.deal(index, item.corrections),
            )
        return (one + two).view(np.int64), meter


GRAPHS = graphs.ALL | {
    "secret_tables": secret_tables,
    "largest_of_many": largest_of_many,
    "rounded": rounded_and_not_clipped,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_same_integers_rounds_and_bytes(name: str) -> None:
    graph = GRAPHS[name]()

    async def work() -> None:
        with ThreadPoolExecutor(2) as pool:
            roles = Roles(graph, pool)
            for index in range(2):
                shape = (1, *graph.input.shape)
                q = np.random.default_rng(index).integers(-128, 128, shape).astype(np.int8)
                answer, meter = await roles.infer(q, index)
                assert np.array_equal(answer, reference.run_int(graph, q))
                cost = plan(graph, streamed=False).cost()
                assert meter.rounds == cost.rounds
                assert meter.bytes_sent == cost.online_bytes_per_direction

    run(work())


def deep(layers: int = 12, side: int = 104) -> Graph:
    net = Net(3, (8, side, side))
    for _ in range(layers):
        net.conv(8, (3, 3), padding=(1, 1))
        net.requantize()
    net.sum_pool((side, side), (side, side))
    net.requantize()
    net.flatten()
    net.linear(10)
    return net.done()


def test_memory_is_bounded_by_the_largest_gate_not_by_the_item() -> None:
    """All three roles together: each holds a gate in use and the next one, the dealer and party 1
    with its corrections, and what a convolution unrolls."""

    async def peak(graph: Graph) -> tuple[int, MpcPlan]:
        with ThreadPoolExecutor(2) as pool:
            roles = Roles(graph, pool)
            shape = (1, *graph.input.shape)
            q = np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
            expected = reference.run_int(graph, q)
            tracemalloc.start()
            try:
                answer, _ = await roles.infer(q)
                found = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert np.array_equal(answer, expected)
            return found, roles.plan

    short, _ = run(peak(deep(layers=6)))
    found, made = run(peak(deep(layers=18)))
    largest = max(8 * (gate.dealt_words + gate.free_words) for gate in made.gates)
    item = made.cost().offline_bytes_party1
    assert item > 100 * 2**20
    assert found < 10 * largest < item
    assert found < short + 2 * largest  # three times the depth, about the same memory


def test_the_dealers_parts_are_what_it_would_deal_at_once() -> None:
    program = load_dealer(split(graphs.mlp())["dealer"])
    item = program.deal_gates()
    whole = program.correct(Keystream(item.seed0), Keystream(item.seed1))
    assert b"".join(item.corrections) == whole.astype("<u8").tobytes()


def test_what_is_streamed_is_public_and_part_of_the_plan() -> None:
    graph = graphs.mlp()
    assert not plan(graph).streamed
    made = plan(graph, streamed=True)
    assert MpcPlan.from_json(made.to_json(), made.graph).streamed
    assert load_client(split(graph, streamed=True)["client"])[1].streamed
    assert plan(graph).to_json() == plan(graph, streamed=False).to_json() != made.to_json()
    assert made.cost(3).rounds == 3 * plan(graph).cost().rounds
    big = plan(deep())
    assert big.cost().offline_bytes_party1 > STREAM_BYTES
    assert big.streamed
    assert not plan(deep(), streamed=False).streamed


def test_a_feed_gives_everything_once_and_in_order() -> None:
    async def work() -> None:
        feed, taken = Feed([5, 5], 8), []
        feed.on_credit = taken.append
        feed.begin(0)
        feed.add(0, 0, b"abc")
        waiting = asyncio.ensure_future(feed.take(0, 0, 5, 1.0))
        await asyncio.sleep(0)
        feed.add(0, 3, b"defg")
        assert bytes(await waiting) == b"abcde"
        assert taken == [5]
        with pytest.raises(MalformedMessage):
            await feed.take(0, 0, 2, 1.0)
        with pytest.raises(MalformedMessage):
            feed.begin(1)
        for index, offset, data in ((0, 6, b"h"), (0, 7, b""), (0, 7, b"hijk"), (1, 7, b"h")):
            with pytest.raises(MalformedMessage):
                feed.add(index, offset, data)
        with pytest.raises(MalformedMessage):
            await feed.take(0, 5, 4, 1.0)
        feed.add(0, 7, b"hij")
        assert bytes(await feed.take(0, 5, 5, 1.0)) == b"fghij"
        feed.begin(1)
        feed.add(1, 0, b"12345678")
        with pytest.raises(MalformedMessage, match="credit"):
            feed.add(1, 8, b"9")
        assert bytes(await feed.take(1, 0, 5, 1.0)) == b"12345"
        feed.add(1, 8, memoryview(b"90"))
        assert bytes(await feed.take(1, 5, 5, 1.0)) == b"67890"
        feed.begin(2)

    run(work())


def test_a_feed_with_room_takes_more_ahead_and_grants_it_in_pauses() -> None:
    async def work() -> None:
        feed, granted = Feed([4, 4, 4], 8, 24), []
        assert feed.window == 24
        feed.on_credit = granted.append
        for index in range(2):
            feed.begin(index)
            feed.add(index, 0, bytes(range(12)))
        for number in range(3):
            assert bytes(await feed.take(0, 4 * number, 4, 1.0))[0] == 4 * number
        assert granted == []  # there is enough here, and what runs is not disturbed
        feed.settle()
        feed.settle()
        assert granted == [12]
        await feed.take(1, 0, 4, 1.0)
        assert granted == [12, 4]  # two parts are left: now at once
        feed.begin(2)
        await feed.take(1, 4, 4, 1.0)
        await feed.take(1, 8, 4, 1.0)
        assert granted == [12, 4, 4, 4]
        assert Feed([4], 4, 1).window == 4

    run(work())


def test_a_silent_dealer_and_a_closed_feed() -> None:
    async def work() -> None:
        feed = Feed([4, 6], 8)
        with pytest.raises(MaterialExhausted, match="silence"):
            await feed.take(0, 0, 4, 0.02)
        waiting = asyncio.ensure_future(feed.take(0, 0, 4, 5.0))
        await asyncio.sleep(0.01)
        feed.close()
        with pytest.raises(MaterialExhausted, match="gone"):
            await waiting

    run(work())


def test_a_sample_is_used_once_and_its_material_too() -> None:
    async def work() -> None:
        with ThreadPoolExecutor(1) as pool:
            roles = Roles(graphs.mlp(), pool)
            mine = Item(0, roles.dealer.deal().seed0)

            async def there() -> Item:
                return mine

            share = np.zeros((1, 64), np.uint8)
            sample = Sample(roles.parties[0], there, None, pool)
            roles.parties[0].run(share, sample)
            with pytest.raises(MaterialReused):
                roles.parties[0].run(share, sample)
            await sample.next()
            await sample.close()
            with pytest.raises(MaterialReused):
                await Sample(roles.parties[0], there, None, pool).next()

    run(work())
