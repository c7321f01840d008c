"""What carries a party link's frames: a stream of frames over TLS, or a gRPC stream.

Both carry the messages of ``party_link.proto``. Frames over TLS are the default: an exchange takes
a quarter of the time and an eighth of the CPU. gRPC is for networks whose proxies let nothing but
HTTP/2 pass.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from secure_quant.errors import MalformedMessage, PeerUnavailable
from secure_quant.mpc.runtime.options import LinkProtocol
from secure_quant.transport import FrameStream, Limits, Security, aio_channel, dial_stream
from secure_quant.wire import raised
from secure_quant.wire.gen.party_link_pb2 import ExchangeRequest, ExchangeResponse
from secure_quant.wire.gen.party_link_pb2_grpc import PartyLinkServiceStub

__all__ = ["Carrier", "Frame", "GrpcCarrier", "StreamCarrier", "dial_carrier"]

Frame = ExchangeRequest | ExchangeResponse
Kind = type[ExchangeRequest] | type[ExchangeResponse]
LOST = "the other party closed the link"


class Carrier(ABC):
    """kind: the message that this side sends. Every method raises PeerUnavailable, or the error
    that the peer named, once the link is lost."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    @abstractmethod
    def write(self, frame: Frame) -> None:
        """Queue a frame."""

    @abstractmethod
    async def drain(self) -> None:
        """Return when more may be written."""

    @abstractmethod
    async def read(self) -> Frame:
        """The next frame. Raises MalformedMessage."""

    @abstractmethod
    async def run(self, take: Callable[[Frame], None]) -> None:
        """Hand every frame to ``take`` until the link ends; always raises."""

    def look(self, patience_s: float) -> bool:
        """Hand over to ``run`` what comes within that time, while the loop stands still; whether
        any did. False at once where the carrier cannot."""
        del patience_s
        return False


class StreamCarrier(Carrier):
    """Frames over TLS."""

    def __init__(self, kind: Kind, stream: FrameStream) -> None:
        super().__init__(kind)
        self._stream = stream
        self._theirs: Kind = ExchangeResponse if kind is ExchangeRequest else ExchangeRequest

    def write(self, frame: Frame) -> None:
        self._stream.write(frame.SerializeToString())

    async def drain(self) -> None:
        await self._stream.drain()

    async def read(self) -> Frame:
        return self._parse(await self._stream.read())

    async def run(self, take: Callable[[Frame], None]) -> None:
        await self._stream.run(lambda data: take(self._parse(data)))

    def look(self, patience_s: float) -> bool:
        return self._stream.look(patience_s)

    def _parse(self, data: bytes) -> Frame:
        try:
            return self._theirs.FromString(data)
        except DecodeError as error:
            raise MalformedMessage("frame of a link", expected=self._theirs.__name__) from error


class GrpcCarrier(Carrier):
    """``read`` and ``write`` are those of an open call or of its context at the server."""

    def __init__(
        self,
        kind: Kind,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[Any], Awaitable[None]],
    ) -> None:
        super().__init__(kind)
        self._read, self._write = read, write
        self._order = asyncio.Lock()
        self._under_way: set[asyncio.Task[None]] = set()

    def write(self, frame: Frame) -> None:
        task = asyncio.create_task(self._send(frame))
        self._under_way.add(task)
        task.add_done_callback(_retrieved)

    async def drain(self) -> None:
        tasks, self._under_way = self._under_way, set()
        for task in tasks:
            await task

    async def read(self) -> Frame:
        try:
            frame = await self._read()
        except grpc.aio.AioRpcError as error:
            raise raised(error) from error
        except grpc.aio.UsageError as error:
            raise PeerUnavailable(LOST) from error
        if frame is grpc.aio.EOF:
            raise PeerUnavailable(LOST)
        found: Frame = frame
        return found

    async def run(self, take: Callable[[Frame], None]) -> None:
        while True:
            take(await self.read())

    async def _send(self, frame: Frame) -> None:
        try:
            async with self._order:
                await self._write(frame)
        except grpc.aio.AioRpcError as error:
            raise raised(error) from error
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise PeerUnavailable(LOST) from error


@asynccontextmanager
async def dial_carrier(
    address: str, security: Security, protocol: LinkProtocol, limits: Limits | None = None
) -> AsyncIterator[Carrier]:
    """Party 0's end of a link to party 1 at ``host:port``.

    Raises PeerUnavailable, ConfigError and the errors of ``Tls.load``.
    """
    if protocol == "tls":
        async with dial_stream(address, security, server_role="party1", limits=limits) as stream:
            yield StreamCarrier(ExchangeRequest, stream)
        return
    async with aio_channel(address, security, server_role="party1", limits=limits) as channel:
        call = PartyLinkServiceStub(channel).Exchange()
        try:
            yield GrpcCarrier(ExchangeRequest, call.read, call.write)
        finally:
            call.cancel()


def _retrieved(task: asyncio.Task[None]) -> None:
    """``drain`` raises the error; when nobody drains any more the link is gone anyway."""
    if not task.cancelled():
        task.exception()
