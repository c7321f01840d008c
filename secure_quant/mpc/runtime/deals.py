"""A party's stream from the dealer: what fills a lane's stock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import grpc.aio

from secure_quant.errors import MalformedMessage, PeerUnavailable
from secure_quant.keystream import SEED_BYTES
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.runtime.parts import Parts
from secure_quant.mpc.runtime.stock import Stock
from secure_quant.wire import raised
from secure_quant.wire.deal_chunks import Chunk, decode_response
from secure_quant.wire.gen.dealer_pb2 import (
    DESCRIPTOR,
    DealChunk,
    DealCredit,
    DealItem,
    DealLeave,
    DealOpen,
    DealRequest,
    DealResponse,
    DealTuple,
)

__all__ = ["DealerStream", "open_deal"]

DEAL = f"/{DESCRIPTOR.services_by_name['DealerService'].full_name}/Deal"


def open_deal(
    channel: grpc.aio.Channel, *, wait_for_ready: bool = False
) -> grpc.aio.StreamStreamCall[Any, DealResponse | Chunk]:
    """``Deal`` at the dealer. As the generated stub would, but for chunks, which are not copied."""
    method = channel.stream_stream(
        DEAL, request_serializer=DealRequest.SerializeToString,
        response_deserializer=decode_response,
    )  # fmt: skip
    return method(wait_for_ready=wait_for_ready)


class DealerStream:
    """This party's end of ``Deal``: opens the session, grants credit, fills the stock."""

    def __init__(
        self,
        stock: Stock,
        call: grpc.aio.StreamStreamCall[DealRequest, DealResponse | Chunk],
        party: int,
    ) -> None:
        self._stock, self._call, self._party = stock, call, party
        self._writing = asyncio.Lock()
        self._open_items: dict[str, tuple[DealItem, Parts]] = {}  # by model: they come side by side
        self._tasks: set[asyncio.Task[None]] = set()
        self.trace = ""
        """Of the last inference that used material: the next credit names it."""
        self.tuple_seed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._tuples: dict[int, tuple[Parts, asyncio.Future[memoryview]]] = {}

    async def open(
        self, session_id: bytes, lane: int, models: Sequence[str],
        splits: Mapping[str, bytes] | None = None,
    ) -> None:  # fmt: skip
        """Open the session and grant credit for a full stock of each model. splits: what the dealer
        knows this party's bundles by."""
        opened = DealOpen(session_id=session_id, lane=lane, party=self._party, splits=splits or {})
        await self._send(DealRequest(open=opened))
        self._stock.on_credit = self._grant
        for model in models:
            feed = self._stock.feeds.get(model)
            if feed is not None:
                feed.on_credit = partial(self._grant, model, 0)
                feed.on_leave = partial(self._leave, model)
            await self._credit(model, self._stock.depth(model), feed.window if feed else 0)

    async def pump(self) -> None:
        """Read until the stream ends. Raises PeerUnavailable, MalformedMessage and whatever the
        dealer answered."""
        try:
            while True:
                response = await self._receive(self._call.read())
                if response is grpc.aio.EOF:
                    raise PeerUnavailable("the dealer closed the stream")
                self._take(response)
        except BaseException:
            self._stock.close()
            lost = PeerUnavailable("the dealer closed the stream")
            waits: list[asyncio.Future[Any]] = [self.tuple_seed]
            waits += [each for _, each in self._tuples.values()]
            for wait in waits:
                if not wait.done():
                    wait.set_exception(lost)
                    wait.exception()  # nobody need be waiting
            raise

    async def tuple_confirmed(self, request: DealTuple) -> None:
        """Party 0: the tuple that its program uses next; the dealer corrects no other."""
        await self._send(DealRequest(tuple=request))

    async def tuple_correction(self, request: DealTuple, size: int) -> memoryview:
        """Party 1's correction of one tuple of a CrypTen program, ``size`` bytes."""
        wait: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._tuples[request.index] = (Parts(size), wait)
        await self._send(DealRequest(tuple=request))
        return await wait

    def _take(self, response: DealResponse | Chunk) -> None:
        if isinstance(response, Chunk):
            self._part(response)
            return
        kind = response.WhichOneof("message")
        if kind == "item":
            self._head(response.item)
        elif kind == "chunk":
            self._part(response.chunk)
        elif kind == "tuple_seed":
            if self.tuple_seed.done() or len(response.tuple_seed.seed) != SEED_BYTES:
                raise MalformedMessage("seed for tuples", expected=f"{SEED_BYTES} bytes, once")
            self.tuple_seed.set_result(response.tuple_seed.seed)
        elif kind == "tuple_chunk":
            self._tuple_part(response)
        else:
            raise MalformedMessage("message of the dealer", got=kind, expected="item or chunk")

    def _part(self, chunk: Chunk | DealChunk) -> None:
        feed = self._stock.feeds.get(chunk.model_hash)
        if feed is not None:
            feed.add(chunk.index, chunk.offset, chunk.data)
            return
        if (unfinished := self._open_items.get(chunk.model_hash)) is None:
            raise MalformedMessage("chunk", expected="an item of its model before it")
        head, parts = unfinished
        if chunk.index != head.index:
            raise MalformedMessage("chunk of an item", got=chunk.index, expected=head.index)
        if parts.add(chunk.offset, chunk.data):
            del self._open_items[chunk.model_hash]
            self._finish(head, parts.whole)

    def _head(self, head: DealItem) -> None:
        expected = self._stock.correction_bytes(head.model_hash)
        if head.correction_bytes != expected or len(head.seed) != SEED_BYTES:
            raise MalformedMessage("item", got=head.correction_bytes, expected=expected)
        feed = self._stock.feeds.get(head.model_hash)
        if feed is not None:
            feed.begin(head.index, leavable=head.leavable)
            self._finish(head, b"")
        elif head.model_hash in self._open_items:
            raise MalformedMessage("item", got="a new one", expected="the rest of the last")
        elif expected:
            self._open_items[head.model_hash] = (head, Parts(expected))
        else:
            self._finish(head, b"")

    def _finish(self, head: DealItem, corrections: bytes | memoryview) -> None:
        self._stock.put(head.model_hash, head.index, Item(self._party, head.seed, corrections))

    def _tuple_part(self, response: DealResponse) -> None:
        chunk = response.tuple_chunk
        if chunk.index not in self._tuples:
            raise MalformedMessage("tuple", got=chunk.index, expected="one that was asked for")
        parts, wait = self._tuples[chunk.index]
        if chunk.total_bytes != parts.size:
            got, expected = chunk.total_bytes, parts.size
            raise MalformedMessage("bytes of a tuple", got=got, expected=expected)
        if parts.add(chunk.offset, chunk.data):
            del self._tuples[chunk.index]
            wait.set_result(parts.whole)

    def _leave(self, model: str, index: int) -> None:
        self._spawn(self._send(DealRequest(leave=DealLeave(model_hash=model, index=index))))

    def _grant(self, model: str, items: int, size: int = 0) -> None:
        self._spawn(self._credit(model, items, size))

    def _spawn(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._call.cancel()  # the pump sees it and ends the session

    async def _credit(self, model: str, items: int, size: int = 0) -> None:
        credit = DealCredit(model_hash=model, items=items, bytes=size, trace=self.trace)
        self.trace = ""
        await self._send(DealRequest(credit=credit))

    async def _send(self, request: DealRequest) -> None:
        async with self._writing:
            await self._receive(self._call.write(request))

    @staticmethod
    async def _receive(operation: Awaitable[Any]) -> Any:
        try:
            return await operation
        except grpc.aio.AioRpcError as error:
            raise raised(error) from error
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise PeerUnavailable("the dealer closed the stream") from error
