"""What a front and its worker processes say to each other: typed messages over a socket pair.

A message is a frozen dataclass; a frame is two lengths (little-endian, 4 and 8 bytes), the name
and fields of the message as a JSON object, and the bytes of its field ``body`` if it has one.
Nothing that is read can run, and every field is of its declared type, or the frame is malformed. A
named error travels as the google.rpc.Status of ``secure_quant.wire.status``.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import grpc

from secure_quant.errors import InternalError, MalformedMessage, SecureQuantError
from secure_quant.wire import from_status, to_status
from secure_quant.wire.rpc_status import METADATA_KEY

__all__ = [
    "MessagePipe",
    "Ping",
    "Pong",
    "Vocabulary",
    "error_from_bytes",
    "error_to_bytes",
    "receive_message",
    "send_message",
]

_HEAD = struct.Struct("<IQ")
MAX_HEADER = 2**20
MAX_BODY = 2**40
"""A front sends bundles; what a worker sends is bounded by ``MessagePipe``."""
JOINED = 2**20
GONE = "the other end of a worker's pipe is gone"


@dataclass(frozen=True, slots=True)
class Ping:
    """Front to worker: are you there?"""


@dataclass(frozen=True, slots=True)
class Pong:
    """Worker to front: yes."""


Check = Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _each(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


CHECKS: dict[str, Check] = {
    "int": _whole,
    "float": lambda value: _whole(value) or isinstance(value, float),
    "bool": lambda value: isinstance(value, bool),
    "str": _text,
    "tuple[int, ...]": _each(_whole),
    "tuple[str, ...]": _each(_text),
    "dict[str, int]": lambda value: isinstance(value, dict) and all(map(_whole, value.values())),
}
"""The types that a field may have, besides ``body: bytes``."""


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


class Vocabulary:
    """The messages that may be read from one pipe. Ping and Pong always may."""

    def __init__(self, *kinds: type[Any]) -> None:
        self._kinds: dict[str, tuple[type[Any], dict[str, str], bool]] = {}
        every: tuple[type[Any], ...] = (Ping, Pong, *kinds)
        for kind in every:
            types = {each.name: _named(each.type) for each in fields(kind)}
            has_body = types.pop("body", None) is not None
            if unknown := set(types.values()) - set(CHECKS):
                raise TypeError(f"{kind.__name__}: {unknown}")
            self._kinds[kind.__name__] = kind, types, has_body

    def read(self, header: bytes, body: bytes | memoryview) -> Any:
        """Raises MalformedMessage."""
        try:
            found = json.loads(header)
            kind, types, has_body = self._kinds[found.pop("")]
            if found.keys() != types.keys() or (body and not has_body):
                raise KeyError
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
            raise MalformedMessage("message of a worker's pipe") from error
        for name, expected in types.items():
            if not CHECKS[expected](found[name]):
                raise MalformedMessage(f"{kind.__name__}.{name}", expected=expected)
            if isinstance(found[name], list):
                found[name] = tuple(found[name])
        return kind(**found, body=body) if has_body else kind(**found)


def encode(message: Any) -> tuple[bytes, bytes | memoryview]:
    """(head and header, body)"""
    plain: dict[str, Any] = {"": type(message).__name__}
    body: bytes | memoryview = b""
    for each in fields(message):
        if each.name == "body":
            body = message.body
        else:
            plain[each.name] = getattr(message, each.name)
    header = json.dumps(plain, separators=(",", ":")).encode()
    return _HEAD.pack(len(header), len(body)) + header, body


def _lengths(head: bytes | memoryview, most: int) -> tuple[int, int]:
    header, body = _HEAD.unpack(head)
    if header > MAX_HEADER or body > most:
        raise MalformedMessage("frame of a worker's pipe", got=(header, body))
    return header, body


class MessagePipe:
    """One end, in an event loop. ``send`` never waits; ``receive`` is for one reader at a time."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        vocabulary: Vocabulary,
        most: int,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._vocabulary, self._most = vocabulary, most

    @classmethod
    async def over(
        cls, sock: socket.socket, vocabulary: Vocabulary, most: int = MAX_BODY
    ) -> MessagePipe:
        """Take over a connected socket in the running loop. most: bytes of a body read here."""
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**20)
        return cls(reader, writer, vocabulary, most)

    def send(self, message: Any) -> None:
        """Queue a message. Raises InternalError once the other end is gone."""
        if self._writer.is_closing():
            raise InternalError(GONE)
        head, body = encode(message)
        if len(body) <= JOINED:  # one wake-up of the other end
            self._writer.write(head + body)
        else:
            self._writer.write(head)
            self._writer.write(body)

    async def receive(self) -> Any:
        """The next message. Raises InternalError when the other end is gone, MalformedMessage."""
        try:
            head = await self._reader.readexactly(_HEAD.size)
            size, length = _lengths(head, self._most)
            header = await self._reader.readexactly(size)
            body = await self._reader.readexactly(length) if length else b""
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise InternalError(GONE) from error
        return self._vocabulary.read(header, body)

    def close(self) -> None:
        """Close this end; what was queued is still sent."""
        self._writer.close()


def receive_message(link: socket.socket, vocabulary: Vocabulary) -> Any:
    """The worker's end of a blocking socket. Raises EOFError, ConnectionError, MalformedMessage."""
    size, length = _lengths(_exactly(link, _HEAD.size), MAX_BODY)
    header = bytes(_exactly(link, size))
    return vocabulary.read(header, _exactly(link, length) if length else b"")


def send_message(link: socket.socket, message: Any) -> None:
    """Raises ConnectionError once the front is gone."""
    head, body = encode(message)
    if len(body) <= JOINED:
        link.sendall(head + body)
    else:
        link.sendall(head)
        link.sendall(body)


def _exactly(link: socket.socket, length: int) -> memoryview:
    view, got = memoryview(bytearray(length)), 0
    while got < length:
        more = link.recv_into(view[got:])
        if more == 0:
            raise EOFError
        got += more
    return view


def error_to_bytes(error: SecureQuantError) -> bytes:
    """A named error as a serialized google.rpc.Status."""
    details = dict(to_status(error)[2])[METADATA_KEY]
    return details if isinstance(details, bytes) else details.encode()


def error_from_bytes(data: bytes | memoryview) -> SecureQuantError:
    """Inverse of ``error_to_bytes``; InternalError for what is none."""
    return from_status(grpc.StatusCode.INTERNAL, None, ((METADATA_KEY, bytes(data)),))
