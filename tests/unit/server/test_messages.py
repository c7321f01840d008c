"""Typed messages: what arrives is what was sent, or it is malformed."""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import ample

from secure_quant import errors
from secure_quant.errors import InternalError, MalformedMessage, SecureQuantError
from secure_quant_server.common.messages import (
    JOINED,
    MessagePipe,
    Ping,
    Vocabulary,
    encode,
    error_from_bytes,
    error_to_bytes,
    receive_message,
    send_message,
)


@dataclass(frozen=True)
class Inner:
    whole: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Fields:
    whole: int
    real: float
    yes: bool
    name: str
    word: Literal["one", "two"]
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    inner: Inner


@dataclass(frozen=True)
class Data:
    ids: tuple[str, ...]
    share: bytes


WORDS = Vocabulary(Fields, Data)
FIELDS = st.builds(
    Fields, st.integers(-(2**63), 2**63), st.floats(allow_nan=False), st.booleans(), st.text(),
    st.sampled_from(["one", "two"]), st.lists(st.integers()).map(tuple),
    st.lists(st.text()).map(tuple),
    st.builds(Inner, st.integers(), st.lists(st.text()).map(tuple)),
)  # fmt: skip
WRONG = [
    None, [None], {"a": "b"}, [[1]], [True, "x"], {"whole": 1, "names": [2]},
    {"whole": True, "names": []}, {"whole": 1, "names": [], "more": 1},
]  # fmt: skip
MESSAGES = st.one_of(FIELDS, st.builds(Data, st.lists(st.text()).map(tuple), st.binary()))


def split(message) -> tuple[bytes, bytes]:
    head, parts = encode(message)
    body = b"".join(parts)
    size, length = struct.unpack("<IQ", head[:12])
    assert (size, length) == (len(head) - 12, len(body))
    return head[12:], bytes(body)


@given(MESSAGES)
def test_a_message_arrives_whole(message) -> None:
    assert WORDS.read(*split(message)) == message


@given(FIELDS, st.data())
def test_a_field_of_another_type_is_malformed(message, data) -> None:
    header = json.loads(split(message)[0])
    name = data.draw(st.sampled_from([each.name for each in fields(Fields)]))
    header[name] = data.draw(st.sampled_from(WRONG))
    with pytest.raises(MalformedMessage):
        WORDS.read(json.dumps(header).encode(), b"")


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"1", b"null", b"{}", b'{"":"Data"}', b'{"":"Other"}', b'{"":["Data"]}',
     b'{"":"Data","ids":[],"more":1}', b"\xff", b"[" * 100_000, b'{"":"__class__"}'],
    ids=range(13),
)  # fmt: skip
def test_nonsense_is_malformed(header: bytes) -> None:
    with pytest.raises(MalformedMessage):
        WORDS.read(header, b"")


def test_a_body_where_there_is_none_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        WORDS.read(*split(Ping())[:1], b"x")


def test_a_vocabulary_knows_its_types() -> None:
    @dataclass(frozen=True)
    class Odd:
        thing: set

    @dataclass(frozen=True)
    class Two:
        one: bytes
        other: bytes

    for kind in (Odd, Two):
        with pytest.raises(TypeError, match=kind.__name__):
            Vocabulary(kind)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("size", [0, 1, JOINED, JOINED + 1, 5 * JOINED])
def test_both_ends_and_both_ways(size: int, views: bool) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    message = Data(("a",), body[:size])

    async def work() -> None:
        ours, theirs = socket.socketpair()
        pipe = await MessagePipe.over(ours, WORDS, views=views)
        pipe.send(message)
        there = await asyncio.to_thread(receive_message, theirs, WORDS)
        assert (there.ids, bytes(there.share)) == (message.ids, message.share)
        sending = asyncio.create_task(asyncio.to_thread(send_message, theirs, message))
        here = await pipe.receive()
        assert here == message
        assert isinstance(here.share, memoryview) == (views and size > JOINED)
        await sending
        theirs.close()
        with pytest.raises(InternalError):
            await pipe.receive()
        pipe.close()
        with pytest.raises(InternalError):
            pipe.send(message)

    asyncio.run(asyncio.wait_for(work(), ample(20)))


@pytest.mark.parametrize("views", [False, True])
def test_an_end_that_goes_amid_a_body(views: bool) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        pipe = await MessagePipe.over(ours, WORDS, views=views)
        theirs.sendall(struct.pack("<IQ", 2, 2 * JOINED) + b"{}" + bytes(1000))
        theirs.close()
        with pytest.raises(InternalError):
            await pipe.receive()
        pipe.close()

    asyncio.run(asyncio.wait_for(work(), ample(20)))


def test_a_body_above_the_bound_is_refused_by_its_length() -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        pipe = await MessagePipe.over(ours, WORDS, most=100)
        theirs.sendall(struct.pack("<IQ", 10, 101))
        with pytest.raises(MalformedMessage):
            await pipe.receive()
        pipe.close()
        theirs.close()

    asyncio.run(asyncio.wait_for(work(), ample(20)))


@pytest.mark.parametrize("name", errors.__all__)
def test_every_named_error_arrives(name: str) -> None:
    error: SecureQuantError = getattr(errors, name)("what", got=1, expected="<= 2", hint="a hint")
    found = error_from_bytes(error_to_bytes(error))
    assert isinstance(error, type(found))  # a base that is not in the table stands for its kin
    assert str(found) == str(error)


def test_an_error_that_is_none_is_internal() -> None:
    assert type(error_from_bytes(b"\x00nonsense")) is InternalError
