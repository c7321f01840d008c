import asyncio

import pytest
from clock import run
from hypothesis import given
from hypothesis import strategies as st
from unit.mpc.protocol.graphs import mlp

from secure_quant.errors import (
    MalformedMessage,
    MaterialExhausted,
    MaterialReused,
    ModelNotFound,
)
from secure_quant.mpc.protocol.bundle import load_party, split
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.runtime.deals import DealerStream
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.mpc.runtime.staging import make_stock
from secure_quant.mpc.runtime.stock import Stock, stock_depth
from secure_quant.wire.gen.dealer_pb2 import (
    DealChunk,
    DealItem,
    DealRequest,
    DealResponse,
)

SEED = b"s" * 32


def filled(count: int, depth: int = 8, batch: int = 0) -> Stock:
    stock = Stock(0, {"m": (depth, 0)}, batch=batch)
    for index in range(count):
        stock.put("m", index, Item(0, SEED))
    return stock


@given(st.lists(st.integers(1, 4), min_size=1, max_size=10))
def test_each_index_is_given_out_once_and_in_order(counts):
    async def work():
        stock, firsts = filled(sum(counts), depth=40), []
        for count in counts:
            first, items = await stock.take("m", count, 1)
            assert len(items) == count
            firsts += range(first, first + count)
        return firsts, stock.held("m")

    firsts, left = run(work())
    assert firsts == list(range(sum(counts)))
    assert left == 0


def test_a_second_use_is_refused():
    async def work():
        stock = filled(4)
        await stock.take_at("m", 1, 2, 1)
        with pytest.raises(MaterialReused):
            await stock.take_at("m", 2, 1, 1)
        with pytest.raises(MaterialReused):
            await stock.take_at("m", 0, 2, 1)
        # A refusal takes nothing.
        assert len(await stock.take_at("m", 0, 1, 1)) == 1

    run(work())


def test_waits_for_material_and_gives_up():
    async def work():
        stock = filled(1)
        waiting = asyncio.ensure_future(stock.take("m", 2, 5))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        stock.put("m", 1, Item(0, SEED))
        assert (await waiting)[0] == 0
        with pytest.raises(MaterialExhausted, match="dealer"):
            await stock.take("m", 1, 0.02)

    run(work())


def test_a_closed_stock_is_empty_and_wakes_whoever_waits():
    async def work():
        stock = filled(1)
        waiting = asyncio.ensure_future(stock.take("m", 2, 5))
        await asyncio.sleep(0)
        stock.close()
        with pytest.raises(MaterialExhausted):
            await waiting
        assert stock.held("m") == 0

    run(work())


def test_refuses_what_it_does_not_know_or_cannot_hold():
    async def work():
        stock = filled(1)
        with pytest.raises(ModelNotFound):
            await stock.take("other", 1, 1)
        with pytest.raises(MaterialExhausted, match="at once"):
            await stock.take("m", 9, 1)
        with pytest.raises(MalformedMessage):
            await stock.take_at("m", 100, 1, 1)
        with pytest.raises(MalformedMessage, match="index"):
            stock.put("m", 5, Item(0, SEED))

    run(work())


def test_credit_returns_what_was_taken():
    async def work():
        granted = []
        stock = filled(8)
        stock.on_credit = lambda _, count: granted.append(count)
        for _ in range(8):
            await stock.take("m", 1, 1)
        return granted

    assert sum(run(work())) == 8


def test_depth_keeps_within_memory():
    assert stock_depth(1000, 10_999) == 10
    assert stock_depth(1000, 999) == 1
    assert stock_depth(0, 10**9) == stock_depth(10, 10**9) == 256
    assert stock_depth(10, 10**9, 1024) == 1024


@pytest.mark.parametrize("fits", [0.5, 3.5, 1000])
def test_a_lane_asks_for_what_fits_its_limit(fits):
    bundles = split(mlp())
    programs = [load_party(bundles[f"party{i}"]) for i in range(2)]
    size = programs[1].plan.cost(1).offline_bytes_party1
    options, name = LaneOptions(material_bytes=int(fits * size), batch=9), programs[0].model_hash
    first, second = (make_stock(i, {name: programs[i]}, options) for i in range(2))
    assert second.depth(name) == max(1, min(256, int(fits)))
    assert second.most(name) == max(9, second.depth(name))
    assert first.depth(name) == 256  # seeds alone
    assert first.correction_bytes(name) == 0


class Dealer:
    """Sends what there is credit for, one item at a time."""

    def __init__(self, stock: Stock, depth: int):
        self.stock, self.credit, self.sent, self.most = stock, depth, 0, 0
        stock.on_credit = self.grant

    def grant(self, _, count):
        self.credit += count

    async def run(self, pause_s: float):
        while True:
            await asyncio.sleep(pause_s)
            if self.credit:
                self.credit -= 1
                self.stock.put("m", self.sent, Item(0, SEED))
                self.sent += 1
                self.most = max(self.most, self.stock.held("m"))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_no_more_is_held_than_fits_but_for_whoever_waits_for_more(counts):
    async def work():
        stock, taken = Stock(1, {"m": (3, 0)}, batch=9), 0
        dealer = Dealer(stock, 3)
        dealing = asyncio.ensure_future(dealer.run(0.1))
        for count in counts:
            dealer.most = 0
            first, items = await stock.take("m", count, 1)
            assert (first, len(items)) == (taken, count)
            assert dealer.most <= max(3, count)
            taken += count
            stock.settle()
            await asyncio.sleep(2)
            assert stock.held("m") == 3
            assert dealer.sent == taken + 3
        with pytest.raises(MaterialExhausted, match="at once"):
            await stock.take("m", 10, 1)
        dealing.cancel()

    run(work())


def test_credit_that_was_lent_is_paid_back():
    async def work():
        stock, granted = filled(3, depth=3, batch=8), []
        stock.on_credit = lambda _, count: granted.append(count)
        for _ in range(2):  # nobody sends: credit is lent once
            with pytest.raises(MaterialExhausted):
                await stock.take("m", 8, 0.1)
        assert granted == [5]
        for index in range(3, 8):
            stock.put("m", index, Item(0, SEED))
        for _ in range(8):
            await stock.take("m", 1, 1)
        stock.settle()
        assert sum(granted) == 8

    run(work())


def test_whoever_waits_for_many_gives_up_when_none_comes_for_long():
    async def work():
        stock = Stock(1, {"m": (2, 0)}, batch=8)
        dealing = asyncio.ensure_future(Dealer(stock, 2).run(0.9))
        start = asyncio.get_running_loop().time()
        await stock.take("m", 8, 1)
        assert asyncio.get_running_loop().time() - start > 7
        dealing.cancel()
        with pytest.raises(MaterialExhausted, match="dealer"):
            await stock.take("m", 8, 1)

    run(work())


class _Call:
    """The dealer's side of a stream."""

    def __init__(self, *responses: DealResponse) -> None:
        self.responses = list(responses)
        self.requests: list[DealRequest] = []

    async def read(self):
        if not self.responses:
            await asyncio.sleep(3600)
        return self.responses.pop(0)

    async def write(self, request):
        self.requests.append(request)


def head(index=0, size=6, seed=SEED, model="m"):
    item = DealItem(model_hash=model, index=index, seed=seed, correction_bytes=size)
    return DealResponse(item=item)


def chunk(offset, data, index=0, model="m"):
    made = DealChunk(model_hash=model, index=index, offset=offset, data=data)
    return DealResponse(chunk=made)


async def pumped(*responses: DealResponse) -> tuple[Stock, _Call]:
    stock, call = Stock(1, {"m": (4, 6)}), _Call(*responses)
    stream = DealerStream(stock, call, 1)
    await stream.open(b"i" * 16, 3, ["m"])
    pump = asyncio.ensure_future(stream.pump())
    await asyncio.wait([pump], timeout=0.05)
    if pump.done():
        pump.result()
    pump.cancel()
    await asyncio.gather(pump, return_exceptions=True)
    return stock, call


def test_an_item_arrives_in_chunks():
    async def work():
        stock = Stock(1, {"m": (4, 6)})
        call = _Call(head(), chunk(0, b"abcd"), chunk(4, b"ef"), head(1), chunk(0, b"ghijkl", 1))
        pump = asyncio.ensure_future(DealerStream(stock, call, 1).pump())
        _, items = await stock.take("m", 2, 1)
        pump.cancel()
        return [(seed, bytes(data)) for seed, data in (item.take() for item in items)]

    assert run(work()) == [(SEED, b"abcdef"), (SEED, b"ghijkl")]


def test_items_of_two_models_come_side_by_side():
    """Each one's chunks are sent as there is room: only a model's own are in order."""

    async def work():
        stock = Stock(1, {"m": (4, 6), "n": (4, 3)})
        call = _Call(
            head(), head(size=3, model="n"), chunk(0, b"abcd"), chunk(0, b"xyz", model="n"),
            head(1, size=3, model="n"), chunk(4, b"ef"), head(1), chunk(0, b"uvw", 1, model="n"),
            chunk(0, b"ghijkl", 1),
        )  # fmt: skip
        pump = asyncio.ensure_future(DealerStream(stock, call, 1).pump())
        found = [(await stock.take(model, 2, 1))[1] for model in ("m", "n")]
        pump.cancel()
        return [[bytes(item.take()[1]) for item in items] for items in found]

    assert run(work()) == [[b"abcdef", b"ghijkl"], [b"xyz", b"uvw"]]


def test_opening_grants_credit_for_a_full_stock():
    _, call = run(pumped())
    opened, credit = call.requests
    assert (opened.open.party, opened.open.lane, opened.open.session_id) == (1, 3, b"i" * 16)
    assert (credit.credit.model_hash, credit.credit.items) == ("m", 4)


@pytest.mark.parametrize(
    "responses",
    [
        [chunk(0, b"abcdef")],
        [head(), head()],
        [head(), chunk(0, b"abcdef", model="n")],
        [head(size=7)],
        [head(seed=b"short")],
        [head(), chunk(1, b"bcdef")],
        [head(), chunk(0, b"abcdefg")],
        [head(), chunk(0, b"")],
        [head(), chunk(0, b"abc", index=1)],
        [head(index=1), chunk(0, b"abcdef", index=1)],
        [DealResponse()],
    ],
    ids=range(11),
)
def test_a_dealer_that_breaks_the_protocol_ends_the_session(responses):
    with pytest.raises(MalformedMessage):
        run(pumped(*responses))


def test_a_model_that_was_not_asked_for_ends_the_session():
    with pytest.raises(ModelNotFound):
        run(pumped(head(model="x")))
