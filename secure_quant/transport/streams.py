"""Framed messages over mutual TLS 1.3, without HTTP/2 between: for links where microseconds count.

A frame is its length, uint32 little-endian, and that many bytes. The same certificates, roles and
limits hold as on a gRPC channel. An exchange of two small frames takes 10 to 30 µs, and as much CPU
time at each end; over a bidirectional gRPC stream it takes 200 and 300.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from secure_quant.errors import (
    ConfigError,
    MessageTooLarge,
    PeerUnavailable,
    PermissionDenied,
    SecureQuantError,
)
from secure_quant.transport.channels import Limits
from secure_quant.transport.contexts import fresh_context, tls_context
from secure_quant.transport.fresh import FreshCredentials
from secure_quant.transport.roles import Role, role_of
from secure_quant.transport.sockets import SocketTransport, connected, listening, shaken
from secure_quant.transport.tls import InsecurePlaintext, Security, check_security

__all__ = ["FrameStream", "dial_stream", "listen_stream"]

_HEAD = struct.Struct("<I")
PROTOCOL = "secure-quant-frames/1"
"""Negotiated by ALPN, so that a gRPC peer on the other end is noticed in the handshake."""
MAX_PARTS = 1024


class FrameStream(asyncio.Protocol):
    """One end of a connection. ``write`` queues, ``drain`` waits until there is room again.

    Frames come one at a time from ``read``, or to a callback in ``run``; not both at once. While
    nobody reads, the connection holds one frame and then makes its peer wait.
    """

    def __init__(self, limit: int) -> None:
        """``limit``: largest frame taken in, in bytes."""
        loop = asyncio.get_running_loop()
        self._limit = limit
        self._transport: SocketTransport | None = None
        # What is being received: a head or a frame, the parts of it that came, bytes still to come.
        self._in_head, self._missing = True, _HEAD.size
        self._parts: list[bytes] = []
        self._frames: deque[bytes] = deque()
        self._take: Callable[[bytes], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._held = False
        self._lost: asyncio.Future[None] = loop.create_future()
        self._lost.add_done_callback(lambda lost: lost.exception())  # nobody need be waiting

    def write(self, frame: bytes) -> None:
        """Queue a frame. Raises PeerUnavailable once the connection is lost."""
        if self._lost.done() or self._transport is None:
            raise PeerUnavailable("the other end closed the connection")
        self._transport.write(_HEAD.pack(len(frame)) + frame)

    async def drain(self) -> None:
        """Return when more may be written. Raises what the connection was lost with."""
        if self._room is not None and not self._lost.done():
            await asyncio.wait({self._room, self._lost}, return_when=asyncio.FIRST_COMPLETED)
        if self._lost.done():
            self._lost.result()

    async def read(self) -> bytes:
        """The next frame. Raises PeerUnavailable, MessageTooLarge."""
        while not self._frames:
            if self._lost.done():
                self._lost.result()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        frame = self._frames.popleft()
        self._hold()
        return frame

    async def run(self, take: Callable[[bytes], None]) -> None:
        """Hand every frame to ``take`` as it arrives, until the connection ends; always raises:
        PeerUnavailable, MessageTooLarge, or what ``take`` raised."""
        self._take = take
        try:
            self._deliver()
            self._hold()
            await asyncio.shield(self._lost)
        finally:
            self._take = None

    def look(self, patience_s: float) -> bool:
        """Hand over to ``run`` what comes within that time, in this thread, of which the loop does
        nothing else meanwhile; whether any did. For a peer that is about to answer."""
        return self._transport is not None and self._transport.look(patience_s)

    def close(self) -> None:
        """End the connection once what was written has left."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's callback."""
        self._transport = cast("SocketTransport", transport)

    def data_received(self, data: bytes) -> None:
        """asyncio's callback."""
        place, end = 0, len(data)
        while place < end:
            taken = min(self._missing, end - place)
            self._parts.append(data if taken == end else data[place : place + taken])
            self._missing, place = self._missing - taken, place + taken
            if not self._missing:
                whole = self._joined()
                if not self._in_head:
                    self._frames.append(whole)
                    self._in_head, self._missing = True, _HEAD.size
                elif not self._begun(*_HEAD.unpack(whole)):
                    return
            elif len(self._parts) == MAX_PARTS:  # a peer that sends byte by byte
                self._parts.append(self._joined())
        self._deliver()
        self._hold()

    def _joined(self) -> bytes:
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return whole

    def _begun(self, size: int) -> bool:
        """A frame's head came; False if the frame is refused."""
        self._in_head, self._missing = False, size
        if 1 <= size <= self._limit:
            return True
        expected = f"1 to {self._limit} bytes"
        self._end(MessageTooLarge("frame", got=f"{size} bytes", expected=expected))
        return False

    def eof_received(self) -> None:
        """asyncio's callback; the connection then closes by itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's callback."""
        self._end(PeerUnavailable("the other end closed the connection", got=_reason(exc)))

    def pause_writing(self) -> None:
        """asyncio's callback."""
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """asyncio's callback."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _deliver(self) -> None:
        if self._take is None:
            if self._frames and self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            return
        try:
            while self._frames:
                self._take(self._frames.popleft())
        except Exception as error:  # noqa: BLE001  whatever it is, ``run`` raises it
            self._end(error)

    def _hold(self) -> None:
        hold = bool(self._frames) and self._take is None
        if hold != self._held and self._transport is not None:
            self._held = hold
            (self._transport.pause_reading if hold else self._transport.resume_reading)()

    def _end(self, error: Exception) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._transport is not None:
            self._transport.abort()


@asynccontextmanager
async def dial_stream(
    address: str, security: Security, *, server_role: str, limits: Limits | None = None
) -> AsyncIterator[FrameStream]:
    """Connect to ``host:port``, whose certificate must prove ``server_role``.

    Raises PeerUnavailable, ConfigError, InsecureRefused and the errors of ``Tls.load``.
    """
    bounds, (host, port) = limits or Limits(), _host_port(address)
    checked, context, name = check_security(security), None, None
    if not isinstance(checked, InsecurePlaintext):
        context = tls_context(ssl.PROTOCOL_TLS_CLIENT, checked.load(), PROTOCOL)
        name = checked.server_name or Role.parse(server_role).dns_name
    try:
        async with asyncio.timeout(bounds.connect_s):
            sock = await connected(host, port)
            if context is not None:
                sock = await shaken(sock, context, server_hostname=name)
    except (OSError, TimeoutError) as error:
        raise PeerUnavailable(address, got=_reason(error)) from error
    stream = FrameStream(bounds.message_bytes)
    transport = SocketTransport(sock, stream)
    try:
        _check_protocol(address, transport)
        _keep_alive(transport, bounds)
        yield stream
    finally:
        transport.close()


@asynccontextmanager
async def listen_stream(
    address: str,
    security: Security,
    *,
    caller_role: str,
    serve: Callable[[FrameStream], Awaitable[None]],
    limits: Limits | None = None,
) -> AsyncIterator[int]:
    """Listen on ``host:port``; the port. Every connection whose certificate names ``caller_role``
    is given to ``serve`` in a task of its own, and closed when that returns.

    ``serve`` deals with its errors: those it lets out end its connection alone. Connections of
    other roles, or that do not speak TLS 1.3 and this protocol, are closed without an answer.
    Raises ConfigError, InsecureRefused and the errors of ``Tls.load``.
    """
    bounds, (host, port) = limits or Limits(), _host_port(address)
    checked, context = check_security(security), None
    if not isinstance(checked, InsecurePlaintext):
        context = fresh_context(FreshCredentials(checked), PROTOCOL)

    async def attend(sock: socket.socket) -> None:
        try:
            if context is not None:
                async with asyncio.timeout(bounds.connect_s):
                    sock = await shaken(sock, context, server_side=True)
        except (OSError, TimeoutError):
            return
        stream = FrameStream(bounds.message_bytes)
        transport = SocketTransport(sock, stream)
        try:  # before a byte of a frame is taken
            if context is not None:
                _check_role(transport, caller_role)
                _check_protocol("link", transport)
            _keep_alive(transport, bounds)
            await serve(stream)
        except SecureQuantError:
            return
        finally:
            stream.close()

    async with AsyncExitStack() as stack:
        try:
            found = await stack.enter_async_context(listening(host, port, attend))
        except OSError as error:
            raise ConfigError("listen", got=address, expected="a free address") from error
        yield found


def _check_role(transport: asyncio.BaseTransport, expected: str) -> None:
    facts = transport.get_extra_info("peercert") or {}
    role = role_of(value for kind, value in facts.get("subjectAltName", ()) if kind == "URI")
    if role.kind != expected:
        raise PermissionDenied("link", got=f"role {role.kind}", expected=expected)


def _check_protocol(address: str, transport: asyncio.BaseTransport) -> None:
    tls = transport.get_extra_info("ssl_object")
    if tls is not None and tls.selected_alpn_protocol() != PROTOCOL:
        got = tls.selected_alpn_protocol() or "another protocol"
        raise PeerUnavailable(address, got=got, expected=PROTOCOL)


def _keep_alive(transport: asyncio.BaseTransport, limits: Limits) -> None:
    """Notice a peer that is gone without a word, as gRPC's pings do."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None:
        return
    idle, grace = max(1, int(limits.keepalive_s)), max(1, int(limits.keepalive_grace_s))
    wanted = {
        "TCP_KEEPIDLE": idle, "TCP_KEEPINTVL": grace, "TCP_KEEPCNT": 1,
        "TCP_USER_TIMEOUT": 1000 * (idle + grace),
    }  # fmt: skip
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in wanted.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        raise ConfigError("address", got=address, expected="host:port")
    return host.strip("[]"), int(port)


def _reason(error: BaseException | None) -> str | None:
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return None if error is None else type(error).__name__
