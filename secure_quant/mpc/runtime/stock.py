"""A lane's stock of one-time material: received from the dealer ahead of demand, used once.

It lives in memory alone and dies with its session, so nothing of it can be used again after a
crash, a restart or a retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc.aio

from secure_quant.errors import (
    MalformedMessage,
    MaterialExhausted,
    MaterialReused,
    ModelNotFound,
    PeerUnavailable,
)
from secure_quant.keystream import SEED_BYTES
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.runtime.feed import Feed
from secure_quant.mpc.runtime.parts import Parts
from secure_quant.wire import raised
from secure_quant.wire.deal_chunks import Chunk, decode_response
from secure_quant.wire.gen.dealer_pb2 import (
    DESCRIPTOR,
    DealChunk,
    DealCredit,
    DealItem,
    DealOpen,
    DealRequest,
    DealResponse,
    DealTuple,
)

__all__ = ["DealerStream", "Stock", "open_deal", "stock_depth"]

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


def stock_depth(item_bytes: int, memory: int, batch: int) -> int:
    """How many items of ``item_bytes`` to hold: what fits ``memory``, and one largest batch."""
    return max(batch, min(256, memory // max(item_bytes, 1)))


@dataclass
class _Shelf:
    """One model's items by index. arrived, taken, reserved: indices of the next item to come, to be
    taken, to be reserved. owed: items taken for which the dealer has no new credit yet."""

    model: str
    depth: int
    correction_bytes: int
    items: dict[int, Item] = field(default_factory=dict)
    arrived: int = 0
    taken: int = 0
    reserved: int = 0
    owed: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Stock:
    """Items of every model of one session, for one party."""

    def __init__(
        self,
        party: int,
        models: Mapping[str, tuple[int, int]],
        feeds: Mapping[str, Feed] | None = None,
    ) -> None:
        """``models``: hash -> (depth, correction bytes of one item for this party). ``feeds``: at
        party 1, of streamed models, whose items here are seeds alone."""
        self._party, self.feeds = party, dict(feeds or {})
        self._shelves = {name: _Shelf(name, depth, size) for name, (depth, size) in models.items()}
        self._closed = False
        self.on_credit: Callable[[str, int], None] | None = None
        self.on_arrival: Callable[[], None] | None = None

    def depth(self, model: str) -> int:
        """Items that can be held at once. Raises ModelNotFound."""
        return self._shelf(model).depth

    def held(self, model: str) -> int:
        """Items there now."""
        return len(self._shelf(model).items)

    def spare(self, model: str) -> int:
        """Items there now that nobody waits for."""
        shelf = self._shelf(model)
        return 0 if shelf.turn.locked() else len(shelf.items)

    async def take(self, model: str, count: int, timeout: float) -> tuple[int, list[Item]]:
        """The next ``count`` items and the index of the first; waits for them, first come first
        served.

        Raises MaterialExhausted after ``timeout`` seconds, ModelNotFound.
        """
        shelf = self._shelf(model)
        if count > shelf.depth:
            raise MaterialExhausted("items at once", got=count, expected=f"<= {shelf.depth}")
        async with self._patience(shelf, timeout), shelf.turn:
            await self._until(shelf, lambda: shelf.arrived - shelf.taken >= count)
        first = shelf.taken
        return first, self._pop(shelf, first, count)

    async def take_at(self, model: str, first: int, count: int, timeout: float) -> list[Item]:
        """The items that the other party chose; waits for those still to come.

        Raises MaterialReused for one that was taken before, MaterialExhausted, ModelNotFound.
        """
        shelf = self._shelf(model)
        if count > shelf.depth or first > shelf.taken + shelf.depth:
            raise MalformedMessage("items asked for", got=(first, count), expected=shelf.depth)
        async with self._patience(shelf, timeout):
            await self._until(shelf, lambda: shelf.arrived >= first + count)
        return self._pop(shelf, first, count)

    def put(self, model: str, index: int, item: Item) -> None:
        """Take in the next item. Raises MalformedMessage if it is not the next."""
        shelf = self._shelf(model)
        if index != shelf.arrived:
            raise MalformedMessage("index of an item", got=index, expected=shelf.arrived)
        shelf.items[index] = item
        shelf.arrived += 1
        _wake(shelf)
        if self.on_arrival is not None:
            self.on_arrival()

    def reserve(self, model: str, count: int) -> int:
        """Index of the first of the next ``count`` items of a streamed model, which are ``take_at``
        later, one by one. Raises ModelNotFound."""
        shelf = self._shelf(model)
        shelf.reserved += count
        return shelf.reserved - count

    def release(self, model: str, count: int) -> None:
        """The last ``count`` items that were reserved are not wanted after all."""
        self._shelf(model).reserved -= count

    async def there(self, model: str, timeout: float) -> None:
        """Wait until the next item has come, or others are in use, or on their way. Raises
        MaterialExhausted."""
        shelf, feed = self._shelf(model), self.feeds.get(model)

        def some() -> bool:
            under_way = shelf.reserved > shelf.taken or (feed is not None and feed.flows)
            return bool(shelf.items) or under_way

        async with self._patience(shelf, timeout):
            await self._until(shelf, some)

    def settle(self) -> None:
        """Grant the dealer all the credit that it is owed: for a moment when the lane is quiet."""
        for shelf in self._shelves.values():
            self._grant(shelf)
        for feed in self.feeds.values():
            feed.settle()

    def correction_bytes(self, model: str) -> int:
        """Bytes of corrections that one item has for this party."""
        return self._shelf(model).correction_bytes

    def close(self) -> None:
        """Destroy everything; whoever waits gets MaterialExhausted."""
        self._closed = True
        for shelf in self._shelves.values():
            shelf.items.clear()
            _wake(shelf)
        for feed in self.feeds.values():
            feed.close()

    def _pop(self, shelf: _Shelf, first: int, count: int) -> list[Item]:
        wanted = range(first, first + count)
        if any(index not in shelf.items for index in wanted):
            raise MaterialReused("item", got=first, expected="one that was not taken before")
        found = [shelf.items.pop(index) for index in wanted]
        shelf.taken = max(shelf.taken, first + count)
        shelf.owed += count
        # A lump now and then: what arrives costs the inference that runs meanwhile.
        if 2 * shelf.owed >= shelf.depth:
            self._grant(shelf)
        return found

    def _grant(self, shelf: _Shelf) -> None:
        if shelf.owed and self.on_credit is not None:
            self.on_credit(shelf.model, shelf.owed)
            shelf.owed = 0

    @asynccontextmanager
    async def _patience(self, shelf: _Shelf, timeout: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout):
                yield
        except TimeoutError as error:
            raise MaterialExhausted(
                "no material from the dealer", got=f"{timeout:.1f} s waited", hint=shelf.model[:12]
            ) from error

    async def _until(self, shelf: _Shelf, ready: Callable[[], bool]) -> None:
        while not self._closed and not ready():
            self._grant(shelf)
            await shelf.news.wait()
        if self._closed:
            raise MaterialExhausted("the session's material is gone")

    def _shelf(self, model: str) -> _Shelf:
        shelf = self._shelves.get(model)
        if shelf is None:
            raise ModelNotFound("model", got=model[:64], expected="one that is served here")
        return shelf


def _wake(shelf: _Shelf) -> None:
    """Whoever waits for this shelf looks again."""
    shelf.news.set()
    shelf.news.clear()


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
        self._open_item: tuple[DealItem, Parts] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.trace = ""
        """Of the last inference that used material: the next credit names it."""
        self.tuple_seed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._tuples: dict[int, tuple[Parts, asyncio.Future[memoryview]]] = {}

    async def open(self, session_id: bytes, lane: int, models: Sequence[str]) -> None:
        """Open the session and grant credit for a full stock of each model."""
        await self._send(
            DealRequest(open=DealOpen(session_id=session_id, lane=lane, party=self._party))
        )
        self._stock.on_credit = self._grant
        for model in models:
            feed = self._stock.feeds.get(model)
            if feed is not None:
                feed.on_credit = partial(self._grant, model, 0)
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
        head, parts = self._unfinished()
        if (chunk.model_hash, chunk.index) != (head.model_hash, head.index):
            raise MalformedMessage("chunk of an item", got=chunk.index, expected=head.index)
        if parts.add(chunk.offset, chunk.data):
            self._open_item = None
            self._finish(head, parts.whole)

    def _head(self, head: DealItem) -> None:
        expected = self._stock.correction_bytes(head.model_hash)
        if head.correction_bytes != expected or len(head.seed) != SEED_BYTES:
            raise MalformedMessage("item", got=head.correction_bytes, expected=expected)
        feed = self._stock.feeds.get(head.model_hash)
        if feed is not None:
            feed.begin(head.index)
            self._finish(head, b"")
        elif self._open_item is not None:
            raise MalformedMessage("item", got="a new one", expected="the rest of the last")
        elif expected:
            self._open_item = (head, Parts(expected))
        else:
            self._finish(head, b"")

    def _finish(self, head: DealItem, corrections: bytes | memoryview) -> None:
        self._stock.put(head.model_hash, head.index, Item(self._party, head.seed, corrections))

    def _unfinished(self) -> tuple[DealItem, Parts]:
        if self._open_item is None:
            raise MalformedMessage("chunk", expected="an item before it")
        return self._open_item

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

    def _grant(self, model: str, items: int, size: int = 0) -> None:
        task = asyncio.create_task(self._credit(model, items, size))
        self._tasks.add(task)
        task.add_done_callback(self._granted)

    def _granted(self, task: asyncio.Task[None]) -> None:
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
