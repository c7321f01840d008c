"""A streamed item is made gate by gate, and no further than party 1 wants it."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from clock import run
from unit.mpc.protocol import graphs
from unit.server.test_dealer_tuples import Stream

from secure_quant.errors import HashMismatch, MalformedMessage, ModelNotFound
from secure_quant.keystream import Keystream
from secure_quant.mpc.protocol.bundle import load_dealer, load_party, split
from secure_quant.wire.deal_chunks import Chunk, decode_response
from secure_quant.wire.gen.dealer_pb2 import DealCredit, DealItem, DealLeave
from secure_quant_server.common import Metrics
from secure_quant_server.mpc.dealer import _Dealer
from secure_quant_server.mpc.works import Gauges, Works

BUNDLES = split(graphs.mlp(), streamed=True)
PROGRAM = load_dealer(BUNDLES["dealer"])
MODEL, SIZE = PROGRAM.model_hash, 8 * PROGRAM.plan.dealt_words


class Parties:
    """Both calls to one dealer, and how many gates it made."""

    def __init__(self, dealer: _Dealer) -> None:
        self.streams = [Stream(dealer, party) for party in range(2)]

    def credit(self, party: int, items: int, size: int = 0) -> None:
        self.streams[party].put(credit=DealCredit(model_hash=MODEL, items=items, bytes=size))

    def leave(self, index: int, party: int = 1, model: str = MODEL) -> None:
        self.streams[party].put(leave=DealLeave(model_hash=model, index=index))

    async def head(self, party: int) -> DealItem:
        response = await self.streams[party].responses.get()
        assert response.WhichOneof("message") == "item"
        return response.item

    async def chunks(self, count: int) -> bytes:
        """The next ``count`` bytes at party 1."""
        found = b""
        while len(found) < count:
            chunk = decode_response(await self.streams[1].responses.get())
            assert isinstance(chunk, Chunk)
            assert chunk.offset == len(found)
            found += chunk.data
        return found


@pytest.mark.parametrize("party", [0, 1])
def test_a_bundle_of_another_split_is_refused(party: int) -> None:
    """Its masks are others: answers would be wrong, and indices in place of scores not even odd."""
    own, other = (
        [load_party(bundles[f"party{each}"]).split for each in range(2)]
        for bundles in (BUNDLES, split(graphs.mlp(), streamed=True))
    )

    async def work() -> None:
        gauges = Gauges(Metrics())
        with ThreadPoolExecutor(1) as pool:
            dealer = _Dealer({MODEL: Works(PROGRAM, 2**20, gauges, pool)}, gauges)
            with pytest.raises(HashMismatch, match="two splits"):
                await Stream(dealer, party, splits={MODEL: other[party]}).call
            known = [
                Stream(dealer, each, splits={MODEL: own[each], "not here": other[each]})
                for each in range(2)
            ]
            for each in known:
                await each.seed()
            await known[0].end()
            await asyncio.gather(known[1].call, return_exceptions=True)

    run(work())


@asynccontextmanager
async def parties() -> AsyncIterator[Parties]:
    gauges = Gauges(Metrics())
    with ThreadPoolExecutor(1) as pool:
        found = Parties(_Dealer({MODEL: Works(PROGRAM, 2**20, gauges, pool)}, gauges))
        for each in found.streams:
            await each.seed()
        yield found
        await found.streams[0].end()
        await asyncio.gather(found.streams[1].call, return_exceptions=True)


def test_what_is_left_is_not_made_and_the_next_item_is_whole() -> None:
    async def work() -> None:
        async with parties() as found:
            gates = [8 * gate.dealt_words for gate in PROGRAM.plan.order if gate.dealt_words]
            for party in range(2):
                found.credit(party, 3, party * (gates[0] + 1))
            heads = [await found.head(party) for party in range(2)]
            assert heads[1].leavable
            await found.chunks(gates[0])
            await asyncio.sleep(1.0)
            assert found.streams[1].responses.empty()  # it waits for credit
            found.leave(0)
            heads = [await found.head(party) for party in range(2)]
            assert [head.index for head in heads] == [1, 1]
            found.credit(1, 0, SIZE - 1)
            whole = PROGRAM.correct(*(Keystream(head.seed) for head in heads))
            assert await found.chunks(SIZE) == whole.astype("<u8").tobytes()
            await found.head(1)
            found.leave(2)
            found.leave(1)  # long over
            found.credit(0, 1)
            found.credit(1, 1)
            assert (await found.head(1)).index == 3

    run(work())


@pytest.mark.parametrize(
    ("index", "party", "model", "error"),
    [(0, 0, MODEL, MalformedMessage), (5000, 1, MODEL, MalformedMessage),
     (0, 1, "x", ModelNotFound)],
    ids=["party 0", "beyond", "no model"],
)  # fmt: skip
def test_who_may_leave_what(index: int, party: int, model: str, error: type[Exception]) -> None:
    async def work() -> None:
        async with parties() as found:
            found.leave(index, party, model)
            with pytest.raises(error):
                await found.streams[party].call

    run(work())


def test_an_item_of_stock_is_not_left() -> None:
    async def work() -> None:
        program = load_dealer(split(graphs.mlp())["dealer"])
        gauges = Gauges(Metrics())
        with ThreadPoolExecutor(1) as pool:
            works = {MODEL: Works(program, 2**20, gauges, pool)}
            found = Parties(_Dealer(works, gauges))
            found.leave(0)
            with pytest.raises(MalformedMessage):
                await found.streams[1].call
            await asyncio.gather(found.streams[0].call, return_exceptions=True)

    run(work())
