"""CrypTen over our link and our dealer.

``CrypTenSession.run`` runs an unmodified CrypTen program: its conv2d, matmul, relu, comparisons
travel over the mutual-TLS party link, its correlated randomness comes from the dealer, and every
random number it uses comes from AES-CTR streams. CrypTen's process-wide state is replaced while a
program runs and put back after it.

    async with connect(0, link="b.example:9000", dealer="c.example:9100", security=tls) as session:
        y = await session.run(program)

``to_binary`` and ``from_binary`` are the border where inputs of our own inference come in,
``to_shared`` and ``from_shared`` the one where its outputs leave: CrypTen's two share types,
without any communication.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from secure_quant.errors import (
    DeadlineExceeded,
    MalformedMessage,
    Overloaded,
    PeerUnavailable,
    SecureQuantError,
)
from secure_quant.keystream import SEED_BYTES
from secure_quant.mpc.crypten.communicator import LinkCommunicator
from secure_quant.mpc.crypten.compat import ArithmeticSharedTensor, BinarySharedTensor, bound
from secure_quant.mpc.crypten.provider import Correct, DealtTupleProvider, random_bits, ring_element
from secure_quant.mpc.crypten.tuples import TupleSampler, TupleSpec
from secure_quant.mpc.runtime.carriers import Carrier, StreamCarrier, dial_carrier
from secure_quant.mpc.runtime.deals import DealerStream, open_deal
from secure_quant.mpc.runtime.hello import check_hello, make_hello
from secure_quant.mpc.runtime.link import PartyLink
from secure_quant.mpc.runtime.stock import Stock
from secure_quant.transport import FrameStream, Limits, Security, aio_channel, listen_stream
from secure_quant.wire.gen.party_link_pb2 import ExchangeResponse

__all__ = ["CrypTenSession", "connect", "from_binary", "from_shared", "to_binary", "to_shared"]

T = TypeVar("T")
WAIT_S = 30.0
REDIAL_S = 0.2


def to_binary(share: NDArray[np.uint8]) -> Any:
    """uint8[...] XOR share of bytes -> BinarySharedTensor of precision 0."""
    return BinarySharedTensor.from_shares(torch.from_numpy(share.astype(np.int64)), precision=0)


def from_binary(shared: Any) -> NDArray[np.uint8]:
    """Inverse of ``to_binary``."""
    array: NDArray[np.int64] = shared.share.numpy()
    return array.astype(np.uint8)


def to_shared(share: NDArray[np.uint64]) -> Any:
    """uint64[...] share of integers mod 2^64 -> ArithmeticSharedTensor of precision 0."""
    return ArithmeticSharedTensor.from_shares(
        torch.from_numpy(np.array(share, np.uint64).view(np.int64)), precision=0
    )


def from_shared(shared: Any) -> NDArray[np.uint64]:
    """Inverse of ``to_shared``."""
    array: NDArray[np.int64] = shared.share.numpy()
    return array.view(np.uint64)


class CrypTenSession:
    """One session; ``run`` programs in it one after the other, the same on both sides."""

    def __init__(self, rank: int, link: PartyLink, dealer: DealerStream) -> None:
        self._loop = asyncio.get_running_loop()
        self._dealer = dealer
        self.communicator = LinkCommunicator(rank, link, self._loop)
        self._provider: DealtTupleProvider | None = None
        self._generators: dict[str, Any] | None = None

    async def run(self, program: Callable[[], T]) -> T:
        """The program's result; it runs in a thread. Raises what it raises, and PeerUnavailable
        when the link or the dealer is lost."""
        key = await self._dealer.tuple_seed
        if self._provider is None:
            self._provider = DealtTupleProvider(key, self._correction())
        return await asyncio.to_thread(self._run, self._provider, program)

    def _run(self, provider: DealtTupleProvider, program: Callable[[], T]) -> T:
        if self._generators is None:
            self._generators = self._agree()
        with bound(self.communicator, provider, self._generators, ring_element, random_bits):
            return program()

    def _agree(self) -> dict[str, Any]:
        """Streams that the parties share pairwise ("prev", "next") or own ("local"). The "global"
        one is public by design, CrypTen feeds it to torch.rand for dropout."""
        mine = secrets.token_bytes(2 * SEED_BYTES)
        theirs = self.communicator.exchange_bytes(mine)
        coin = bytes(a ^ b for a, b in zip(mine[SEED_BYTES:], theirs[SEED_BYTES:], strict=True))
        public = torch.Generator()
        public.manual_seed(int.from_bytes(coin[:8], "little", signed=True))
        return {
            "next": TupleSampler(mine[:SEED_BYTES]),
            "prev": TupleSampler(theirs[:SEED_BYTES]),
            "local": TupleSampler(secrets.token_bytes(SEED_BYTES)),
            "global": public,
        }

    def _correction(self) -> Correct:
        def correct(spec: TupleSpec, index: int) -> memoryview | None:
            asked = spec.to_proto(index)
            if self.communicator.rank == 0:
                confirmed = self._dealer.tuple_confirmed(asked)
                asyncio.run_coroutine_threadsafe(confirmed, self._loop).result()
                return None
            work = self._dealer.tuple_correction(asked, 8 * prod(spec.result))
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()

        return correct


@asynccontextmanager
async def connect(
    party: int, *, link: str, dealer: str, security: Security, limits: Limits | None = None
) -> AsyncIterator[CrypTenSession]:
    """A session of ``party`` 0, which dials ``link``, or 1, which listens on it (``host:port``).

    Raises PeerUnavailable, DeadlineExceeded, MalformedMessage and the errors of ``Tls.load``.
    """
    async with AsyncExitStack() as stack:
        opened = _dial if party == 0 else _accept
        wires, session_id = await stack.enter_async_context(opened(link, security, limits))
        channel = await stack.enter_async_context(
            aio_channel(dealer, security, server_role="dealer", limits=limits)
        )
        call = open_deal(channel, wait_for_ready=True)
        stack.callback(call.cancel)
        tuples = DealerStream(Stock(party, {}), call, party)
        await _in_time(tuples.open(session_id, 0, []))
        pumps = [asyncio.ensure_future(wires.pump()), asyncio.ensure_future(tuples.pump())]
        try:
            yield CrypTenSession(party, wires, tuples)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


@asynccontextmanager
async def _dial(
    link: str, security: Security, limits: Limits | None
) -> AsyncIterator[tuple[PartyLink, bytes]]:
    async with AsyncExitStack() as stack:
        carrier = await _in_time(_until_there(stack, link, security, limits))
        wires, session_id = PartyLink(carrier), secrets.token_bytes(16)
        await wires.greet(make_hello(session_id, 0, {}))
        theirs = await _in_time(wires.greeted())
        check_hello(theirs, 0, {})
        if theirs.session_id != session_id:
            raise MalformedMessage("session id", expected="the one that was offered")
        yield wires, session_id


async def _until_there(
    stack: AsyncExitStack, link: str, security: Security, limits: Limits | None
) -> Carrier:
    """The two sides start in any order: dial until the other listens."""
    while True:
        try:
            return await stack.enter_async_context(dial_carrier(link, security, "tls", limits))
        except PeerUnavailable:
            await asyncio.sleep(REDIAL_S)


@asynccontextmanager
async def _accept(
    link: str, security: Security, limits: Limits | None
) -> AsyncIterator[tuple[PartyLink, bytes]]:
    opened: asyncio.Future[tuple[PartyLink, bytes]] = asyncio.get_running_loop().create_future()
    closed = asyncio.Event()

    async def serve(stream: FrameStream) -> None:
        wires = PartyLink(StreamCarrier(ExchangeResponse, stream))
        try:
            hello = await _in_time(wires.greeted())
            check_hello(hello, 0, {})
            if opened.done():
                raise Overloaded("sessions on this port", got=2, expected=1)
        except SecureQuantError as error:
            await wires.decline(error)
            return
        opened.set_result((wires, hello.session_id))
        await wires.greet(make_hello(hello.session_id, 0, {}))
        await closed.wait()

    listening = listen_stream(link, security, caller_role="party0", serve=serve, limits=limits)
    async with listening:
        try:
            yield await _in_time(opened)
        finally:
            closed.set()


async def _in_time(step: Any) -> Any:
    try:
        async with asyncio.timeout(WAIT_S):
            return await step
    except TimeoutError as error:
        raise DeadlineExceeded("the peer does not come", got=f"{WAIT_S:g} s") from error
