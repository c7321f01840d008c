"""A peer that speaks HTTP/2 itself, and so may do what no gRPC library does: grant no window, say.

Frames as RFC 9113 has them; header fields as literals without indexing (RFC 7541, 6.2.2).
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from secure_quant.transport import Tls

DATA, HEADERS, SETTINGS, PING, ACK, END = 0, 1, 4, 6, 1, 1
INITIAL_WINDOW_SIZE = 4
GRPC = [(":method", "POST"), (":scheme", "https"), (":authority", "x"), ("te", "trailers"),
        ("content-type", "application/grpc")]  # fmt: skip


class BareHttp2:
    """One connection. ``frames``: what came, (kind, stream, payload)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._next = reader, writer, 1
        self.frames: list[tuple[int, int, bytes]] = []

    def call(self, method: str, body: bytes, *, fields: Sequence[tuple[str, str]] = ()) -> int:
        """A request, whole; the number of its stream."""
        stream, self._next = self._next, self._next + 2
        block = b"".join(_literal(*each) for each in [*GRPC, (":path", method), *fields])
        message = b"\0" + len(body).to_bytes(4, "big") + body
        self._write(HEADERS, 4, stream, block)
        self._write(DATA, END, stream, message)
        return stream

    def got(self, kind: int, stream: int) -> list[bytes]:
        """Payloads of that kind that came for a stream."""
        return [body for each, number, body in self.frames if (each, number) == (kind, stream)]

    async def follow(self) -> None:
        """Read until the server hangs up; settings and pings are answered."""
        while True:
            head = await self._reader.readexactly(9)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            body = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            self.frames.append((kind, stream, body))
            if kind in (SETTINGS, PING) and not flags & ACK:
                self._write(kind, ACK, 0, body if kind == PING else b"")

    def greet(self, window: int) -> None:
        """window: bytes that the server may send on each stream unasked."""
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        setting = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + window.to_bytes(4, "big")
        self._write(SETTINGS, 0, 0, setting)

    def _write(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
        self._writer.write(head + payload)


@asynccontextmanager
async def bare_http2(port: int, tls: Tls, role: str, *, window: int) -> AsyncIterator[BareHttp2]:
    """A connection to a server of that role on loopback, read in the background."""
    loaded = tls.load()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=loaded.ca.decode())
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder, "cert"), Path(folder, "key")
        cert.write_bytes(loaded.cert)
        key.write_bytes(loaded.key)
        context.load_cert_chain(cert, key)
    name = f"{role}.secure-quant.internal"
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name
    )
    made = BareHttp2(reader, writer)
    made.greet(window)
    following = asyncio.create_task(made.follow())
    try:
        yield made
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        writer.transport.abort()


def _literal(name: str, value: str) -> bytes:
    """Neither may be longer than 126 bytes."""
    return b"\0" + b"".join(bytes([len(each)]) + each.encode() for each in (name, value))
