"""A bundle that a front keeps on disk arrives as it was, or not at all."""

import asyncio
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import ample

from secure_quant.errors import ConfigError, InternalError
from secure_quant_server.common.bundles import PIECE, Bundle
from secure_quant_server.common.messages import (
    MessagePipe,
    Parts,
    Ping,
    Vocabulary,
    receive_message,
)

DATA = os.urandom(3 * PIECE + 5)


@dataclass(frozen=True, slots=True)
class Heavy:
    name: str
    body: bytes | memoryview | Parts


WORDS = Vocabulary(Heavy)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    made.write_bytes(DATA)
    return made


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE + 5])
def test_a_file_and_bytes_are_alike(path: Path, size: int) -> None:
    path.write_bytes(DATA[:size])
    for made in (Bundle(path), Bundle(str(path)), Bundle(DATA[:size])):
        assert len(made) == size
        assert bytes(made.whole()) == DATA[:size]
        assert b"".join(made.pieces()) == DATA[:size]
        assert b"".join(made.pieces()) == DATA[:size]  # for the next worker


def test_a_file_that_is_replaced_is_still_the_old_one(path: Path) -> None:
    made, fresh = Bundle(path), path.with_suffix(".new")
    fresh.write_bytes(b"another model")
    fresh.replace(path)
    assert b"".join(made.pieces()) == DATA


def test_what_is_no_file_is_read_once() -> None:
    end, other = os.pipe()
    os.write(other, b"bundle")
    os.close(other)
    made = Bundle(f"/proc/self/fd/{end}")
    os.close(end)
    assert bytes(made.whole()) == b"".join(made.pieces()) == b"bundle"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Bundle(tmp_path / "none")


@pytest.mark.parametrize("size", [5, 3 * PIECE + 5])
def test_a_file_that_is_written_to_is_refused(path: Path, size: int) -> None:
    made = Bundle(path)
    path.write_bytes(bytes(size))
    os.utime(path, ns=(1, 1))  # clocks of file systems are coarse
    with pytest.raises(ConfigError, match="written to"):
        list(made.pieces())


def test_it_is_sent_as_it_is_taken_and_what_is_said_meanwhile_follows(path: Path) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        pipe = await MessagePipe.over(ours, WORDS)
        sent = asyncio.create_task(pipe.send_whole(Heavy("a", Parts((b"x", Bundle(path))))))
        await asyncio.sleep(0.01)
        assert not sent.done()  # nobody reads
        assert pipe._writer.transport.get_write_buffer_size() <= PIECE
        pipe.send(Ping())
        there = await asyncio.to_thread(receive_message, theirs, WORDS)
        assert (there.name, bytes(there.body)) == ("a", b"x" + DATA)
        assert await asyncio.to_thread(receive_message, theirs, WORDS) == Ping()
        await sent
        pipe.send(Ping())
        assert await asyncio.to_thread(receive_message, theirs, WORDS) == Ping()
        theirs.close()
        with pytest.raises(InternalError):
            await pipe.send_whole(Heavy("a", Parts((Bundle(path),))))
        pipe.close()

    asyncio.run(asyncio.wait_for(work(), ample(20)))


def test_a_worker_gets_no_half_of_a_bundle(path: Path) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        pipe, made = await MessagePipe.over(ours, WORDS), Bundle(path)
        path.write_bytes(DATA[:-1])
        sent = asyncio.create_task(pipe.send_whole(Heavy("a", Parts((made,)))))
        with pytest.raises(EOFError):
            await asyncio.to_thread(receive_message, theirs, WORDS)
        with pytest.raises(ConfigError):
            await sent
        with pytest.raises(InternalError):
            pipe.send(Ping())
        theirs.close()

    asyncio.run(asyncio.wait_for(work(), ample(20)))
