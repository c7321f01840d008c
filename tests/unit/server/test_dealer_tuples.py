"""The dealer corrects a tuple only on a specification that both parties confirm."""

import asyncio

import grpc.aio
import numpy as np
import pytest
from clock import run

from secure_quant.errors import MalformedMessage, SecureQuantError
from secure_quant.mpc.crypten.tuples import TupleSpec, correction
from secure_quant.wire.gen.dealer_pb2 import DealOpen, DealRequest, DealResponse
from secure_quant_server.common import Metrics
from secure_quant_server.mpc.dealer import CONFIRMED, _Dealer
from secure_quant_server.mpc.works import Gauges

SQUARE, BITS = TupleSpec("square", (4,)), TupleSpec("b2a", (4,))


class Stream:
    """A party's open call, both ends."""

    def __init__(self, dealer: _Dealer, party: int, **opened: object) -> None:
        self.requests: asyncio.Queue = asyncio.Queue()
        self.responses: asyncio.Queue[DealResponse] = asyncio.Queue()
        self.put(open=DealOpen(session_id=b"s" * 16, lane=0, party=party, **opened))
        self.call = asyncio.ensure_future(dealer.Deal(None, self))

    async def read(self):
        return await self.requests.get()

    async def write(self, response: DealResponse) -> None:
        await self.responses.put(response)

    def put(self, **message) -> None:
        self.requests.put_nowait(DealRequest(**message))

    async def seed(self) -> bytes:
        return (await self.responses.get()).tuple_seed.seed

    async def end(self) -> None:
        self.requests.put_nowait(grpc.aio.EOF)
        await asyncio.gather(self.call, return_exceptions=True)


async def opened() -> tuple[Stream, Stream, tuple[bytes, bytes]]:
    dealer = _Dealer({}, Gauges(Metrics()))
    first, second = Stream(dealer, 0), Stream(dealer, 1)
    return first, second, (await first.seed(), await second.seed())


@pytest.mark.parametrize("ahead", [0, 1])
def test_what_both_name_is_corrected_whoever_is_first(ahead: int) -> None:
    async def work() -> None:
        first, second, keys = await opened()
        for index in range(3):
            for party in (ahead, 1 - ahead):
                (first, second)[party].put(tuple=SQUARE.to_proto(index))
                await asyncio.sleep(0.01)
            chunk = (await second.responses.get()).tuple_chunk
            expected = correction(SQUARE, index, *keys)
            np.testing.assert_array_equal(np.frombuffer(chunk.data, "<i8"), expected)
        assert first.responses.empty()
        await first.end()
        await asyncio.gather(second.call, return_exceptions=True)

    run(work())


def test_party_1_alone_gets_nothing() -> None:
    async def work() -> None:
        first, second, _ = await opened()
        second.put(tuple=SQUARE.to_proto(0))
        await asyncio.sleep(0.1)
        assert second.responses.empty()
        assert not second.call.done()
        await first.end()
        await asyncio.gather(second.call, return_exceptions=True)

    run(work())


@pytest.mark.parametrize(
    ("theirs", "index"), [(BITS, 0), (TupleSpec("square", (5,)), 0), (SQUARE, 1)]
)
def test_different_specifications_end_the_session_without_a_correction(
    theirs: TupleSpec, index: int
) -> None:
    async def work() -> None:
        first, second, _ = await opened()
        first.put(tuple=theirs.to_proto(index))
        second.put(tuple=SQUARE.to_proto(0))
        with pytest.raises(MalformedMessage, match="both parties"):
            await second.call
        with pytest.raises(SecureQuantError):
            await first.call
        assert second.responses.empty()

    run(work())


def test_party_0_cannot_fill_the_dealer() -> None:
    async def work() -> None:
        first, second, _ = await opened()
        for index in range(CONFIRMED + 100):
            first.put(tuple=SQUARE.to_proto(index))
        await asyncio.sleep(0.2)
        assert first.requests.qsize() >= 99  # not read, so gRPC's window holds the rest back
        await second.end()
        await asyncio.gather(first.call, return_exceptions=True)

    run(work())
