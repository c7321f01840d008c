"""Two ends of a link inside one event loop, and a protocol with a known answer."""

from __future__ import annotations

import asyncio

import grpc.aio
import numpy as np

from secure_quant.mpc.runtime.carriers import GrpcCarrier
from secure_quant.mpc.runtime.link import PartyLink
from secure_quant.wire.gen.party_link_pb2 import ExchangeRequest, ExchangeResponse


class Wire:
    """One direction. ``room``: frames that fit before a writer must wait."""

    def __init__(self, room: int = 1) -> None:
        self.frames: asyncio.Queue[object] = asyncio.Queue(room)

    async def write(self, frame):
        await self.frames.put(type(frame).FromString(frame.SerializeToString()))

    async def read(self):
        return await self.frames.get()

    async def end(self):
        await self.frames.put(grpc.aio.EOF)


class Pair:
    """Party 0's and party 1's link, pumping."""

    def __init__(self) -> None:
        self.wires = (Wire(), Wire())  # to party 1, to party 0
        up, down = self.wires
        self.links = (
            PartyLink(GrpcCarrier(ExchangeRequest, down.read, up.write)),
            PartyLink(GrpcCarrier(ExchangeResponse, up.read, down.write)),
        )
        self.pumps: list[asyncio.Future[None]] = []

    async def __aenter__(self):
        self.pumps = [asyncio.ensure_future(link.pump()) for link in self.links]
        return self

    async def __aexit__(self, *_):
        for pump in self.pumps:
            pump.cancel()
        await asyncio.gather(*self.pumps, return_exceptions=True)


def protocol(party: int, sizes: list[int]):
    """Exchanges ``sizes`` bytes, checks what the peer sent, returns the sum of all it got."""
    total = 0
    for number, size in enumerate(sizes):
        got = yield bytes([(number + party) % 256]) * size
        assert got == bytes([(number + 1 - party) % 256]) * size
        total += np.frombuffer(got, np.uint8).astype(np.int64).sum()
    return int(total)
