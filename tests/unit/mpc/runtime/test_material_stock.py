import asyncio

import pytest
from clock import run
from hypothesis import given
from hypothesis import strategies as st

from secure_quant.errors import (
    MalformedMessage,
    MaterialExhausted,
    MaterialReused,
    ModelNotFound,
)
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.runtime.stock import DealerStream, Stock, stock_depth
from secure_quant.wire.gen.dealer_pb2 import (
    DealChunk,
    DealItem,
    DealRequest,
    DealResponse,
)

SEED = b"s" * 32


def filled(count: int, depth: int = 8) -> Stock:
    stock = Stock(0, {"m": (depth, 0)})
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


def test_depth_keeps_within_memory_but_fits_one_batch():
    assert stock_depth(1000, 10_000, 4) == 10
    assert stock_depth(1000, 2_000, 4) == 4
    assert stock_depth(0, 1, 4) == 4
    assert stock_depth(10, 10**9, 4) == 256


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
        [head(size=7)],
        [head(seed=b"short")],
        [head(), chunk(1, b"bcdef")],
        [head(), chunk(0, b"abcdefg")],
        [head(), chunk(0, b"")],
        [head(), chunk(0, b"abc", index=1)],
        [head(index=1), chunk(0, b"abcdef", index=1)],
        [DealResponse()],
    ],
    ids=range(10),
)
def test_a_dealer_that_breaks_the_protocol_ends_the_session(responses):
    with pytest.raises(MalformedMessage):
        run(pumped(*responses))


def test_a_model_that_was_not_asked_for_ends_the_session():
    with pytest.raises(ModelNotFound):
        run(pumped(head(model="x")))
