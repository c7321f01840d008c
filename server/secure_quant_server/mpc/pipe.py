"""Framed messages between a party's front and its lane workers, over a Unix socket pair.

A frame is two lengths (uint32 little-endian), a JSON object, and raw bytes. No pickle: a worker
that went wrong can send nonsense, but nothing that runs.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

from secure_quant import errors
from secure_quant.errors import InternalError, MalformedMessage, SecureQuantError

__all__ = ["Pipe", "error_from_fields", "error_to_fields"]

_HEAD = struct.Struct("<II")
MAX_HEADER = 64 * 2**10
MAX_BODY = 2**30
JOINED = 2**20


class Pipe:
    """One end. ``send`` never waits; ``receive`` is for one reader at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Pipe:
        """Take over a connected socket in the running loop."""
        return cls(*await asyncio.open_connection(sock=sock, limit=2**20))

    def send(self, fields: dict[str, Any], body: bytes | memoryview = b"") -> None:
        """Queue a frame. Raises InternalError once the other end is gone."""
        if self._writer.is_closing():
            raise InternalError("the worker process is gone")
        header = json.dumps(fields, separators=(",", ":")).encode()
        head = _HEAD.pack(len(header), len(body)) + header
        if len(body) <= JOINED:  # one wake-up of the other end
            self._writer.write(head + body)
        else:
            self._writer.write(head)
            self._writer.write(body)

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next frame. Raises InternalError when the other end is gone, MalformedMessage."""
        try:
            size, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            if size > MAX_HEADER or length > MAX_BODY:
                raise MalformedMessage("frame of a worker", got=(size, length))
            header = await self._reader.readexactly(size)
            body = await self._reader.readexactly(length) if length else b""
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise InternalError("the worker process is gone") from error
        fields = json.loads(header)
        if not isinstance(fields, dict):
            raise MalformedMessage("frame of a worker", got=type(fields).__name__, expected="dict")
        return fields, body

    def close(self) -> None:
        """Close this end; what was queued is still sent."""
        self._writer.close()


def error_to_fields(error: SecureQuantError) -> dict[str, Any]:
    """A named error as plain fields."""
    kind = type(error).__name__
    parts = {name: getattr(error, name) for name in ("got", "expected", "hint")}
    texts = {name: str(value) for name, value in parts.items() if value is not None}
    return {"error": kind, "what": error.what, **texts}


def error_from_fields(fields: dict[str, Any]) -> SecureQuantError:
    """Inverse of ``error_to_fields``; an unknown name becomes InternalError."""
    name = fields.get("error")
    kind = getattr(errors, name, InternalError) if name in errors.__all__ else InternalError
    known = {key: fields.get(key) for key in ("got", "expected", "hint")}
    made = kind(str(fields.get("what", name)), **known)
    return made if isinstance(made, SecureQuantError) else InternalError("unknown error")
