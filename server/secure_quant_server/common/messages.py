"""What a front and its worker processes say to each other: typed messages over a socket pair.

A message is a frozen dataclass; a frame is two lengths (little-endian, 4 and 8 bytes), the name
and fields of the message as a JSON object, and the bytes of its one field of bytes if it has one.
Nothing that is read can run, and every field is of its declared type, or the frame is malformed. A
named error travels as the google.rpc.Status of ``secure_quant.wire.status``.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

import grpc

from secure_quant.errors import InternalError, MalformedMessage, SecureQuantError
from secure_quant.wire import from_status, to_status
from secure_quant.wire.rpc_status import METADATA_KEY

__all__ = [
    "MessagePipe",
    "Parts",
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


class Later(Protocol):
    """Bytes that are read when they are sent."""

    def __len__(self) -> int: ...

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of them, a little at a time."""


Part = bytes | memoryview | Later


@dataclass(frozen=True, slots=True)
class Parts:
    """A body to send: parts that need not be joined before. It is read as one."""

    parts: tuple[Part, ...] = field(repr=False)

    def __len__(self) -> int:
        return sum(map(len, self.parts))


Read = Callable[[Any], Any]
"""Checks a value of JSON and makes it one of a field's type. Raises ValueError."""


def _plain(*kinds: type) -> Read:
    def read(value: Any) -> Any:
        if type(value) not in kinds:
            raise ValueError
        return value

    return read


def _reader(kind: Any) -> Read:
    """For int, float, bool, str, a Literal of these, ``tuple[X, ...]``, and dataclasses of all of
    these. Raises TypeError."""
    if kind in (int, bool, str):
        return _plain(kind)
    if kind is float:
        return _plain(float, int)
    if get_origin(kind) is Literal:
        return lambda value: get_args(kind)[get_args(kind).index(value)]
    if get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,):
        return _several(_reader(get_args(kind)[0]))
    if is_dataclass(kind) and isinstance(kind, type):
        return _whole(kind, {name: _reader(each) for name, each in get_type_hints(kind).items()})
    raise TypeError(kind)


def _several(each: Read) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise ValueError
        return tuple(map(each, value))

    return read


def _whole(kind: type[Any], fields: Mapping[str, Read]) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not dict or value.keys() != fields.keys():
            raise ValueError
        return kind(**{name: each(value[name]) for name, each in fields.items()})

    return read


@dataclass(frozen=True)
class _Form:
    """A kind of message. fields: those in the header; body: the name of the field of bytes."""

    kind: type[Any]
    fields: Mapping[str, Read]
    body: str | None


BODIES = (bytes, bytes | memoryview, bytes | memoryview | Parts)


def _form(kind: type[Any]) -> _Form:
    hints = get_type_hints(kind)
    bodies = [name for name, each in hints.items() if each in BODIES]
    try:
        plain = {name: _reader(each) for name, each in hints.items() if name not in bodies}
    except TypeError as error:
        raise TypeError(f"{kind.__name__}: {error}") from error
    if len(bodies) > 1:
        raise TypeError(f"{kind.__name__}: {bodies}")
    return _Form(kind, plain, bodies[0] if bodies else None)


class Vocabulary:
    """The messages that may be read from one pipe. Ping and Pong always may."""

    def __init__(self, *kinds: type[Any]) -> None:
        every: tuple[type[Any], ...] = (Ping, Pong, *kinds)
        self._forms = {each.__name__: _form(each) for each in every}

    def read(self, header: bytes, body: bytes | memoryview) -> Any:
        """Raises MalformedMessage."""
        try:
            found = json.loads(header)
            form = self._forms[found.pop("")]
            if found.keys() != form.fields.keys() or (body and form.body is None):
                raise KeyError
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
            raise MalformedMessage("message of a worker's pipe") from error
        for name, read in form.fields.items():
            try:
                found[name] = read(found[name])
            except ValueError as error:
                what, expected = f"{form.kind.__name__}.{name}", form.kind.__annotations__[name]
                raise MalformedMessage(what, expected=expected) from error
        if form.body is not None:
            found[form.body] = body
        return form.kind(**found)


_to_json = json.JSONEncoder(separators=(",", ":"), default=asdict).encode


def encode(message: Any) -> tuple[bytes, tuple[Part, ...]]:
    """(head and header, body in parts)"""
    plain: dict[str, Any] = {"": type(message).__name__}
    body = Parts(())
    for each in fields(message):
        value = getattr(message, each.name)
        if isinstance(value, Parts):
            body = value
        elif isinstance(value, bytes | memoryview):
            body = Parts((value,))
        else:
            plain[each.name] = value
    header = _to_json(plain).encode()
    return _HEAD.pack(len(header), len(body)) + header, body.parts


def _writes(message: Any) -> Iterator[bytes | memoryview]:
    """What is written for it: a little all at once, for one wake-up of the other end."""
    head, body = encode(message)
    pieces = (piece for part in body for piece in _pieces(part))
    if sum(map(len, body)) <= JOINED:
        yield b"".join((head, *pieces))
    else:
        yield head
        yield from pieces


def _pieces(part: Part) -> Iterator[bytes | memoryview]:
    if isinstance(part, bytes | memoryview):
        yield part
    else:
        yield from part.pieces()


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
        views: bool,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._vocabulary, self._most, self._views = vocabulary, most, views
        self._meanwhile: list[Any] | None = None

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        vocabulary: Vocabulary,
        most: int = MAX_BODY,
        *,
        views: bool = False,
    ) -> MessagePipe:
        """Take over a connected socket in the running loop. most: bytes of a body read here.
        views: large bodies come as memoryviews, which takes no second copy of them."""
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**20)
        return cls(reader, writer, vocabulary, most, views)

    def send(self, message: Any) -> None:
        """Queue a message. Raises InternalError once the other end is gone."""
        if self._writer.is_closing():
            raise InternalError(GONE)
        if self._meanwhile is not None:
            self._meanwhile.append(message)
            return
        for part in _writes(message):
            self._writer.write(part)

    async def send_whole(self, message: Any) -> None:
        """As ``send``, but no faster than the other end takes it: what is ``Later`` is never all in
        memory. What is sent meanwhile follows. Not twice at a time. Raises InternalError, and what
        reading raises, after which this end is closed."""
        meanwhile: list[Any] = []
        self._meanwhile = meanwhile
        try:
            for part in _writes(message):
                self._writer.write(part)
                await self._writer.drain()
        except BaseException as error:
            self.close()
            if isinstance(error, ConnectionError):
                raise InternalError(GONE) from error
            raise
        finally:
            self._meanwhile = None
        for each in meanwhile:
            self.send(each)

    async def receive(self) -> Any:
        """The next message. Raises InternalError when the other end is gone, MalformedMessage."""
        try:
            head = await self._reader.readexactly(_HEAD.size)
            size, length = _lengths(head, self._most)
            header = await self._reader.readexactly(size)
            body = await self._body(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise InternalError(GONE) from error
        return self._vocabulary.read(header, body)

    async def _body(self, length: int) -> bytes | memoryview:
        if length <= JOINED or not self._views:
            return await self._reader.readexactly(length) if length else b""
        view, place = memoryview(bytearray(length)), 0
        while place < length:
            part = await self._reader.read(min(length - place, JOINED))
            if not part:
                raise asyncio.IncompleteReadError(b"", length)
            view[place : place + len(part)] = part
            place += len(part)
        return view.toreadonly()

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
    for part in _writes(message):
        link.sendall(part)


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
