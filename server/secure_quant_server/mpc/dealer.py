"""The dealer: makes one-time material ahead of demand and hands each item out once."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio

from secure_quant.errors import (
    ConfigError,
    DeadlineExceeded,
    HashMismatch,
    MalformedMessage,
    ModelNotFound,
    PeerUnavailable,
    PermissionDenied,
)
from secure_quant.mpc import kernels
from secure_quant.mpc.crypten.tuples import TupleSpec, correction
from secure_quant.mpc.protocol.bundle import load_dealer
from secure_quant.mpc.protocol.deal import DealtGates
from secure_quant.transport import Security
from secure_quant.wire.deal_chunks import encode_chunk
from secure_quant.wire.gen import dealer_pb2_grpc
from secure_quant.wire.gen.dealer_pb2 import (
    DealItem,
    DealOpen,
    DealRequest,
    DealResponse,
    DealTuple,
    DealTupleChunk,
    DealTupleSeed,
)
from secure_quant_server.common import (
    Access,
    GrpcServer,
    current_caller,
    keep_freed_memory,
    logs,
    on_stop_signal,
    read_bundle,
)
from secure_quant_server.mpc.spans import Spans
from secure_quant_server.mpc.works import Gauges, Works, yield_to_others
from secure_quant_server.options import DealerOptions

__all__ = ["DealerOptions", "serve_dealer"]

SERVICE = "secure_quant.v1.DealerService"
CHUNK = 2**20
MAX_CREDIT = 4096
MAX_WINDOW = 2**36
PAIRING_S = 10.0
CONFIRMED = 256
"""Tuples that party 0 may name before party 1 asks for them."""
REQUEST_BYTES = 2**16
"""A party asks for material in messages of a few bytes; a tuple's shapes are the longest."""


async def serve_dealer(
    bundles: Sequence[str | os.PathLike[str] | bytes],
    *,
    listen: str,
    tls: Security,
    **options: Any,
) -> None:
    """Serve correlated randomness until SIGTERM or SIGINT. ``options`` are those of DealerOptions.

    Raises ConfigError, ModelError, InsecureRefused and the errors of ``Tls.load``.
    """
    chosen = DealerOptions(listen=listen, security=tls, **options)
    keep_freed_memory()
    kernels.load()
    stop = on_stop_signal()
    programs = [load_dealer(read_bundle(bundle)) for bundle in bundles]
    access = Access({SERVICE: frozenset({"party0", "party1"})})
    server = GrpcServer(chosen, access, [SERVICE], role="dealer", request_bytes=REQUEST_BYTES)
    gauges = Gauges(server.metrics)
    with ExitStack() as stack:
        spool = None
        if chosen.spool is not None:
            spool = gauges.open_spool(chosen.spool, chosen.spool_bytes)
            stack.callback(spool.close)
        pool = stack.enter_context(
            ThreadPoolExecutor(chosen.workers, "deal", yield_to_others)
        )  # ends before the spool does
        share = chosen.spool_bytes // max(1, len(programs))
        works = {
            program.model_hash: Works(program, chosen.stock_bytes, gauges, pool, spool, share)
            for program in programs
        }
        if len(works) != len(programs):
            raise ConfigError("bundles", expected="a different model each")
        _serve(server, _Dealer(works, gauges))
        await server.start()
        makers = [
            asyncio.create_task(each.make())
            for each in works.values()
            if not each.streamed
            for _ in range(chosen.workers)
        ]
        server.set_serving(True)
        stopped = asyncio.ensure_future(stop.wait())
        try:
            done, _ = await asyncio.wait([stopped, *makers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await server.stop()
            for task in [stopped, *makers]:
                task.cancel()
            await asyncio.gather(stopped, *makers, return_exceptions=True)


def _serve(server: GrpcServer, dealer: _Dealer) -> None:
    """As the generated code would, but for chunks, which are encoded already."""
    method = grpc.stream_stream_rpc_method_handler(
        dealer.Deal,
        request_deserializer=DealRequest.FromString,
        response_serializer=lambda each: (
            each if isinstance(each, bytes) else each.SerializeToString()
        ),
    )
    handlers = {"Deal": method}
    server.server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, handlers),)
    )


class _LaneSession:
    """What two paired lanes share: the same items in the same order, one for both."""

    def __init__(self, lane: int, works: Mapping[str, Works]) -> None:
        self.lane = lane
        self.joined: set[int] = set()
        self.dealing = False
        self.tuple_keys = (secrets.token_bytes(32), secrets.token_bytes(32))
        self._tuples = 0
        # Of party 0, which may be ahead; beyond this its stream is read no further.
        self.confirmed: asyncio.Queue[tuple[int, TupleSpec]] = asyncio.Queue(CONFIRMED)
        self.complete = asyncio.Event()
        self.ended = asyncio.Event()
        self._works = works
        self._credit = (dict.fromkeys(works, 0), dict.fromkeys(works, 0))
        self._window = dict.fromkeys(works, 0)
        self._at = dict.fromkeys(works, 0)  # index of the item that is dealt
        self._left = dict.fromkeys(works, 0)  # of what is before this one party 1 wants no more
        self._granted = {name: asyncio.Event() for name in works}
        self._spans = {name: Spans() for name in works}
        # Short: what is in flight is destroyed when the session ends.
        self.outgoing: tuple[asyncio.Queue[DealResponse | bytes], ...] = (
            asyncio.Queue(64), asyncio.Queue(4),
        )  # fmt: skip

    def next_tuple(self, index: int) -> int:
        """``index`` itself if it is the next. Raises MalformedMessage; no index comes twice."""
        if index != self._tuples:
            raise MalformedMessage("index of a tuple", got=index, expected=self._tuples)
        self._tuples += 1
        return index

    def grant(self, party: int, model: str, items: int, size: int, trace: str = "") -> None:
        """``size``: bytes, of a streamed model at party 1. ``trace``: whose inference made room.

        Raises ModelNotFound, MalformedMessage.
        """
        credit = self._credit[party]
        if model not in credit:
            raise ModelNotFound("model", got=model[:64], expected="one that is dealt here")
        most = MAX_WINDOW - self._window[model] if party and self._works[model].streamed else 0
        if not 0 <= items <= MAX_CREDIT - credit[model] or size > most or not (items or size):
            expected = f"1 to {MAX_CREDIT} in all, {most} bytes"
            raise MalformedMessage("credit", got=(items, size), expected=expected)
        credit[model] += items
        self._window[model] += size
        if party == 0:  # whose front knows of the inference
            self._spans[model].begin(trace, model, items)
        self._granted[model].set()

    def leave(self, party: int, model: str, index: int) -> None:
        """Party 1 wants no more of an item of a streamed model; party 0 has its seed alone.
        Raises ModelNotFound, MalformedMessage."""
        works = self._works.get(model)
        if works is None:
            raise ModelNotFound("model", got=model[:64], expected="one that is dealt here")
        if not party or not works.streamed or index > self._at[model] + MAX_CREDIT:
            raise MalformedMessage("item to leave", got=index, expected="one that party 1 may have")
        self._left[model] = max(self._left[model], index + 1)
        self._granted[model].set()

    async def deal(self, model: str) -> None:
        """Hand out items of a model as both parties' credit allows, until cancelled."""
        works, index = self._works[model], 0
        while True:
            while not all(credit[model] for credit in self._credit):
                await self._more_credit(model)
            for credit in self._credit:
                credit[model] -= 1
            item = works.begin() if works.streamed else await works.take()
            await self._put_head(0, DealItem(model_hash=model, index=index, seed=item.seed0))
            head = DealItem(
                model_hash=model, index=index, seed=item.seed1, correction_bytes=works.size,
                leavable=works.streamed,
            )  # fmt: skip
            await self._put_head(1, head)
            if isinstance(item, DealtGates):
                await self._put_gates(model, index, item)
            else:
                for start in range(0, works.size, CHUNK):
                    await self._put_chunk(model, index, start, item.corrections)
            self._spans[model].dealt()
            index += 1
            self._at[model] = index

    async def _put_gates(self, model: str, index: int, item: DealtGates) -> None:
        """Make one gate's corrections while those of the gate before are sent, as the bytes that
        party 1 has room for allow; until it wants no more of them."""
        works, place = self._works[model], 0
        coming = asyncio.ensure_future(works.next_gate(item))
        try:
            while (part := await coming) is not None:
                coming = asyncio.ensure_future(works.next_gate(item))
                for start in range(0, len(part), CHUNK):
                    size = min(CHUNK, len(part) - start)
                    while self._window[model] < size and index >= self._left[model]:
                        await self._more_credit(model)
                    if index < self._left[model]:
                        return
                    self._window[model] -= size
                    await self._put_chunk(model, index, start, part, place)
                place += len(part)
        finally:
            coming.cancel()

    async def _put_head(self, party: int, head: DealItem) -> None:
        await self.outgoing[party].put(DealResponse(item=head))

    async def _put_chunk(
        self, model: str, index: int, start: int, whole: memoryview, place: int = 0
    ) -> None:
        """From ``start`` in ``whole``, which is ``place`` in the item."""
        part = whole[start : start + CHUNK]
        await self.outgoing[1].put(encode_chunk(model, index, place + start, part))

    def end(self) -> None:
        """Nothing more is dealt."""
        self.ended.set()
        for spans in self._spans.values():
            spans.end()

    async def _more_credit(self, model: str) -> None:
        self._granted[model].clear()
        await self._granted[model].wait()


class _Dealer(dealer_pb2_grpc.DealerServiceServicer):
    def __init__(self, works: Mapping[str, Works], gauges: Gauges) -> None:
        self._works, self._gauges = works, gauges
        self._sessions: dict[bytes, _LaneSession] = {}

    async def Deal(  # type: ignore[override]  # noqa: N802  reads and writes by the context
        self, request_iterator: Any, context: Any
    ) -> None:
        """See dealer.proto."""
        opened = await self._opened(context)
        session = self._join(opened)
        tasks = [
            asyncio.create_task(each)
            for each in (
                self._listen(session, opened.party, context),
                self._send(session, opened.party, context),
                self._pair(session),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            session.end()
            self._sessions.pop(opened.session_id, None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise PeerUnavailable("the session ended")

    async def _opened(self, context: Any) -> DealOpen:
        async with asyncio.timeout(PAIRING_S):
            request = await context.read()
        if request is grpc.aio.EOF or request.WhichOneof("message") != "open":
            raise MalformedMessage("first message to the dealer", expected="open")
        opened: DealOpen = request.open
        if opened.party not in (0, 1) or len(opened.session_id) != 16:
            raise MalformedMessage("open", got=(opened.party, len(opened.session_id)))
        role = current_caller().role
        if role is not None and role.kind != f"party{opened.party}":
            raise PermissionDenied("party", got=role.kind, expected=f"party{opened.party}")
        for model, split in opened.splits.items():
            if model in self._works and self._works[model].splits[opened.party] != split:
                raise HashMismatch(
                    f"bundles of model {model[:12]}",
                    got="two splits, this party's and the dealer's", expected="one for all",
                )  # fmt: skip
        return opened

    def _join(self, opened: DealOpen) -> _LaneSession:
        session = self._sessions.get(opened.session_id)
        if session is None:
            session = self._sessions[opened.session_id] = _LaneSession(opened.lane, self._works)
        if opened.party in session.joined or session.lane != opened.lane:
            raise MalformedMessage("session", got="one that is open already, or of another lane")
        session.joined.add(opened.party)
        if len(session.joined) == 2:
            session.complete.set()
            logs.event("session", lane=session.lane)
        return session

    async def _listen(self, session: _LaneSession, party: int, context: Any) -> None:
        while True:
            received = await context.read()
            if received is grpc.aio.EOF:
                return
            request: DealRequest = received
            kind = request.WhichOneof("message")
            if kind == "credit":
                credit = request.credit
                trace = credit.trace
                session.grant(party, credit.model_hash, credit.items, credit.bytes, trace)
            elif kind == "leave":
                session.leave(party, request.leave.model_hash, request.leave.index)
            elif kind == "tuple" and party == 0:
                spec = TupleSpec.from_proto(request.tuple)
                await session.confirmed.put((request.tuple.index, spec))
            elif kind == "tuple":
                await self._deal_tuple(session, request.tuple)
            else:
                raise MalformedMessage("message to the dealer", got=kind, expected="credit")

    async def _deal_tuple(self, session: _LaneSession, message: DealTuple) -> None:
        """One correlated tuple for a CrypTen program; nothing of it is kept. A correction of some
        other tuple than the one that party 0 expands would tell party 1 of party 0's masks."""
        spec = TupleSpec.from_proto(message)
        index = session.next_tuple(message.index)
        if await session.confirmed.get() != (index, spec):
            raise MalformedMessage("tuple", got="another one", expected="what both parties name")
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(None, correction, spec, index, *session.tuple_keys)
        data = made.astype("<i8", copy=False).tobytes()
        for start in range(0, len(data), CHUNK):
            chunk = DealTupleChunk(
                index=index, total_bytes=len(data), offset=start, data=data[start : start + CHUNK]
            )
            await session.outgoing[1].put(DealResponse(tuple_chunk=chunk))

    async def _send(self, session: _LaneSession, party: int, context: Any) -> None:
        await session.complete.wait()
        seed = DealTupleSeed(seed=session.tuple_keys[party])
        await context.write(DealResponse(tuple_seed=seed))
        while True:
            await context.write(await session.outgoing[party].get())

    async def _pair(self, session: _LaneSession) -> None:
        """Wait for the other party, then deal (one of the two streams does), until either ends."""
        try:
            async with asyncio.timeout(PAIRING_S):
                await session.complete.wait()
        except TimeoutError as error:
            raise DeadlineExceeded("the other party did not open the session") from error
        if not session.dealing:
            session.dealing = True
            await self._deal(session)
        await session.ended.wait()

    async def _deal(self, session: _LaneSession) -> None:
        deals = [asyncio.create_task(session.deal(model)) for model in self._works]
        self._gauges.sessions.inc()
        try:
            await session.ended.wait()
        finally:
            self._gauges.sessions.dec()
            for task in deals:
                task.cancel()
            await asyncio.gather(*deals, return_exceptions=True)
