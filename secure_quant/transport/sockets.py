"""Connections of an event loop over sockets of their own, on which OpenSSL itself reads and writes.

asyncio's TLS goes through two buffers in memory, a pass of the loop for every write, and an error
that is raised and caught for every read. An exchange of small frames takes half as long without,
and a fifth where both ends wait for it in their own threads (``SocketTransport.look``).
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

__all__ = ["SocketTransport", "connected", "listening", "shaken"]

AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
RECORD = 2**14
"""A record of TLS: a read that brings less has brought all there was."""
RECORDS = 64
"""Most of one connection before others have their turn."""
PIECE = 2**16
HIGH, LOW = 2**16, 2**14
"""Bytes not yet written at which a writer is told to wait, and to go on."""
SPIN_S = 5e-5
"""A peer near by that computes as we do answers within it, and to sleep and be woken takes about as
long. Longest time in which a look asks again and again: others who want the core get it, and after
a look that took longer the next one sleeps at once."""
LINGER_S = 1.0
"""For a peer to read what was written before the connection closed."""
PAUSE_S = 1.0
"""After an accept that failed: descriptors may have run out."""


class SocketTransport(asyncio.Transport):
    """One connected socket, past its handshake if it has one. Begins to read at once."""

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        tls = sock if isinstance(sock, ssl.SSLSocket) else None
        super().__init__({
            "socket": sock, "ssl_object": tls, "peercert": tls and tls.getpeercert(),
        })  # fmt: skip
        self._sock, self._protocol = sock, protocol
        self._loop = asyncio.get_running_loop()
        self._unwritten: deque[memoryview] = deque()
        self._size, self._full = 0, False
        self._reading = self._closing = self._ended = False
        self._near = True  # the last look did not take long
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        protocol.connection_made(self)
        self.resume_reading()

    def __del__(self) -> None:
        self._sock.close()

    def is_closing(self) -> bool:
        """asyncio's."""
        return self._closing

    def is_reading(self) -> bool:
        """asyncio's."""
        return self._reading

    def pause_reading(self) -> None:
        """asyncio's."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def resume_reading(self) -> None:
        """asyncio's."""
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._sock, self._read)

    def look(self, patience_s: float) -> bool:
        """Hand over what comes within that time, of which this thread does nothing else; whether
        any did."""
        if not self._reading:
            return False
        start = time.perf_counter()
        while not self._poll.poll(0):
            if not self._near or time.perf_counter() - start > SPIN_S:
                self._poll.poll(1e3 * patience_s)
                break
            os.sched_yield()
        self._near = time.perf_counter() - start < SPIN_S
        return self._read()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """asyncio's: what the system does not take at once waits here."""
        if self._closing:
            return
        self._unwritten.append(memoryview(data))
        self._size += len(data)
        if len(self._unwritten) == 1:
            self._write()
        if self._size > HIGH and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def close(self) -> None:
        """asyncio's: once what waits here is written."""
        if not self._closing:
            self.pause_reading()
            self._closing = True
            if not self._unwritten:
                self._linger()

    def abort(self) -> None:
        """asyncio's."""
        self._end(None)

    def _read(self) -> bool:
        for _ in range(RECORDS):
            try:
                data = self._sock.recv(RECORD)
            except AGAIN:
                return False
            except OSError as error:
                self._end(error)
                return True
            if not data:
                self._end(None)
                return True
            self._protocol.data_received(data)
            if len(data) < RECORD or not self._reading:
                break
        return True

    def _write(self) -> None:
        try:
            while self._unwritten:
                # After AGAIN, TLS must be given the same bytes once more.
                piece = self._unwritten[0]
                sent = self._sock.send(piece[:PIECE])
                self._size -= sent
                if sent < len(piece):
                    self._unwritten[0] = piece[sent:]
                else:
                    self._unwritten.popleft()
        except AGAIN:
            self._loop.add_writer(self._sock, self._go_on)
        except OSError as error:
            self._end(error)

    def _go_on(self) -> None:
        self._loop.remove_writer(self._sock)
        self._write()
        if self._full and self._size <= LOW:
            self._full = False
            self._protocol.resume_writing()
        if self._closing and not self._unwritten and not self._ended:
            self._linger()

    def _linger(self) -> None:
        """Say that nothing more comes, and wait until the peer says it: a socket that is closed
        with something unread makes the peer lose what it has not read."""
        if isinstance(self._sock, ssl.SSLSocket):
            with suppress(OSError, ValueError):  # the peer's own word has not come yet
                self._sock.unwrap()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(None)
            return
        self._loop.add_reader(self._sock, self._discard)
        self._loop.call_later(LINGER_S, self._end, None)

    def _discard(self) -> None:
        try:
            if socket.socket.recv(self._sock, PIECE):
                return
        except AGAIN:
            return
        except OSError:
            pass
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = self._closing = True
        self._reading = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._unwritten.clear()
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, error)


async def connected(host: str, port: int) -> socket.socket:
    """The first address of ``host`` that answers. Raises OSError."""
    loop, failed = asyncio.get_running_loop(), OSError("no address")
    for family, kind, protocol, _, where in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = _made(family, kind, protocol)
        try:
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed


@asynccontextmanager
async def listening(
    host: str, port: int, attend: Callable[[socket.socket], Awaitable[None]]
) -> AsyncIterator[int]:
    """On every address of ``host``; the port. Each connection is given to ``attend``, which closes
    it, in a task of its own; tasks that run are cancelled at the end. Raises OSError."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    socks: list[socket.socket] = []

    async def attended(sock: socket.socket) -> None:
        await attend(sock)

    async def accept(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(PAUSE_S)
                continue
            sock.setblocking(False)
            _prompt(sock)
            task = asyncio.create_task(attended(sock))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    try:
        for family, kind, protocol, _, where in await loop.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            socks.append(_made(family, kind, protocol))
            socks[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            socks[-1].bind(where)
            socks[-1].listen()
        accepting = [asyncio.create_task(accept(each)) for each in socks]
        try:
            yield socks[0].getsockname()[1]
        finally:
            everything = [*accepting, *tasks]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
    finally:
        for each in socks:
            each.close()


async def shaken(sock: socket.socket, context: ssl.SSLContext, **side: Any) -> ssl.SSLSocket:
    """The socket under TLS, after its handshake; what it was is closed with it. side: as
    SSLContext.wrap_socket takes it. Raises OSError."""
    loop = asyncio.get_running_loop()
    try:
        tls = context.wrap_socket(sock, do_handshake_on_connect=False, **side)
    except BaseException:
        sock.close()
        raise
    try:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await _event(tls, loop.add_reader, loop.remove_reader)
            except ssl.SSLWantWriteError:
                await _event(tls, loop.add_writer, loop.remove_writer)
            else:
                return tls
    except BaseException:
        tls.close()
        raise


async def _event(
    sock: socket.socket,
    add: Callable[[socket.socket, Callable[[], None]], object],
    remove: Callable[[socket.socket], object],
) -> None:
    happened = asyncio.get_running_loop().create_future()
    add(sock, lambda: None if happened.done() else happened.set_result(None))
    try:
        await happened
    finally:
        remove(sock)


def _made(family: int, kind: int, protocol: int) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    _prompt(sock)
    return sock


def _prompt(sock: socket.socket) -> None:
    """Small frames leave at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
