"""Frames over TLS, on asyncio's loop and on uvloop's, against certificates of every role."""

import asyncio
import queue
import ssl
import struct
import threading
from contextlib import asynccontextmanager

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import ample

from secure_quant.errors import ConfigError, MessageTooLarge, PeerUnavailable
from secure_quant.transport import (
    FrameStream,
    InsecurePlaintext,
    Limits,
    Tls,
    dial_stream,
    listen_stream,
)
from secure_quant.transport.certs import make_all
from secure_quant.transport.streams import PROTOCOL

LIMITS = Limits(message_bytes=2**20, connect_s=3.0)


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certs")
    make_all(directory)
    return directory


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request):
    return lambda work: request.param(asyncio.wait_for(work, ample(20)))


async def echo(stream):
    await stream.run(stream.write)


@asynccontextmanager
async def listening(certs, serve=echo, role="party1", caller="party0"):
    tls = Tls.from_dir(certs, role)
    async with listen_stream(
        "127.0.0.1:0", tls, caller_role=caller, serve=serve, limits=LIMITS
    ) as port:
        yield f"127.0.0.1:{port}"


def dialled(certs, address, role="party0", expected="party1"):
    return dial_stream(address, Tls.from_dir(certs, role), server_role=expected, limits=LIMITS)


def test_frames_come_back_whole_and_in_order(run, certs):
    frames = [bytes([n]) * size for n, size in enumerate([1, 3, 70_000, 2**20, 5, 300_000])]

    async def work():
        async with listening(certs) as address, dialled(certs, address) as stream:
            for frame in frames:
                stream.write(frame)
            await stream.drain()
            return [await stream.read() for _ in frames]

    assert run(work()) == frames


def test_plaintext_by_choice(run):
    async def work():
        plain = InsecurePlaintext()
        listens = listen_stream("127.0.0.1:0", plain, caller_role="party0", serve=echo)
        async with (
            listens as port,
            dial_stream(f"127.0.0.1:{port}", plain, server_role="party1") as stream,
        ):
            stream.write(b"hello")
            return await stream.read()

    assert run(work()) == b"hello"


@pytest.mark.parametrize("role", ["party1", "dealer", "he", "client"])
def test_other_roles_are_not_served(run, certs, role):
    served = []

    async def serve(stream):
        served.append(stream)

    async def work():
        async with listening(certs, serve) as address, dialled(certs, address, role) as stream:
            with pytest.raises(PeerUnavailable):
                await stream.read()

    run(work())
    assert served == []


def test_a_server_of_another_role_is_not_believed(run, certs):
    async def work():
        async with listening(certs, role="dealer") as address:
            with pytest.raises(PeerUnavailable, match=r"127\.0\.0\.1"):
                async with dialled(certs, address):
                    pass

    run(work())


@pytest.mark.parametrize(
    "how", ["no certificate", "another authority", "TLS 1.2", "no protocol", "no TLS"]
)
def test_who_does_not_prove_itself_is_closed(run, certs, tmp_path, how):
    served = []

    async def serve(stream):
        served.append(stream)

    async def speak(address, context):
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            writer.write(struct.pack("<I", 5) + b"hello" * 50)
            await reader.readexactly(1)
        finally:
            writer.close()

    async def work():
        context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
        context.check_hostname = False
        if how == "another authority":
            make_all(tmp_path / "other")
            chain = tmp_path / "other" / "party0.pem"
            context.load_cert_chain(chain, tmp_path / "other" / "party0.key")
        elif how != "no certificate":
            context.load_cert_chain(certs / "party0.pem", certs / "party0.key")
        if how != "no protocol":
            context.set_alpn_protocols([PROTOCOL])
        if how == "TLS 1.2":
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with listening(certs, serve) as address:
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await speak(address, None if how == "no TLS" else context)

    run(work())
    assert served == []


def test_a_grpc_server_is_recognised(run, certs):
    async def work():
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certs / "ca.pem"))
        context.load_cert_chain(certs / "party1.pem", certs / "party1.key")
        context.set_alpn_protocols(["h2"])
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PeerUnavailable, match=PROTOCOL):
            async with dialled(certs, f"127.0.0.1:{port}"):
                pass
        server.close()

    run(work())


def test_nobody_listens(run, certs):
    async def work():
        async with listening(certs) as address:
            pass
        with pytest.raises(PeerUnavailable):
            async with dialled(certs, address):
                pass

    run(work())


def test_a_taken_port_and_nonsense_addresses_are_named(run, certs):
    async def work():
        async with listening(certs) as address:
            for bad in (address, "nonsense", "localhost:", "localhost:99999"):
                with pytest.raises(ConfigError):
                    async with listen_stream(
                        bad, Tls.from_dir(certs, "party1"), caller_role="party0", serve=echo
                    ):
                        pass

    run(work())


@pytest.mark.parametrize("size", [0, 2**20 + 1, 2**32 - 1])
def test_a_frame_out_of_bounds_ends_the_connection_by_its_head(run, size):
    async def work():
        stream = FrameStream(LIMITS.message_bytes)
        stream.data_received(struct.pack("<I", size) + b"abc")
        with pytest.raises(MessageTooLarge, match=f"{size} bytes"):
            await stream.read()

    run(work())


def test_whoever_waits_learns_that_the_peer_left(run, certs):
    async def leave(stream):
        await stream.read()

    async def work():
        async with listening(certs, leave) as address, dialled(certs, address) as stream:
            waiting = asyncio.ensure_future(stream.run(print))
            await asyncio.sleep(0)
            stream.write(b"bye")
            with pytest.raises(PeerUnavailable, match="closed"):
                await waiting
            with pytest.raises(PeerUnavailable, match="closed"):
                stream.write(b"x")
            with pytest.raises(PeerUnavailable, match="closed"):
                await stream.drain()

    run(work())


def test_an_error_of_the_receiver_ends_the_connection_and_is_raised(run, certs):
    class Refused(Exception):
        pass

    def refuse(frame):
        raise Refused

    async def work():
        async with listening(certs) as address, dialled(certs, address) as stream:
            stream.write(b"x")
            with pytest.raises(Refused):
                await stream.run(refuse)

    run(work())


def test_a_peer_that_does_not_read_makes_the_writer_wait(run, certs):
    """And only so long: what was written arrives in order once it reads again."""
    release = asyncio.Event()

    async def slow(stream):
        await release.wait()
        seen = []
        for _ in range(200):
            frame = await stream.read()
            seen.append(frame[0])
        stream.write(bytes(seen))
        await stream.read()

    async def work():
        async with listening(certs, slow) as address, dialled(certs, address) as stream:
            written = 0

            async def write():
                nonlocal written
                for number in range(200):
                    stream.write(bytes([number]) * 200_000)
                    written += 1
                    await stream.drain()

            writing = asyncio.ensure_future(write())
            stalled = -1
            while stalled != written:  # until it goes on no more
                stalled = written
                await asyncio.sleep(0.5)
            release.set()
            await writing
            answer = await stream.read()
            return stalled, answer

    stalled, answer = run(work())
    assert stalled < 150  # 40 MB do not fit between the two
    assert answer == bytes(range(200))


@asynccontextmanager
async def elsewhere(certs, serve):
    """The address of a listener that has a thread and a loop of its own."""
    found, ended = queue.Queue(), threading.Event()

    async def listen():
        async with listening(certs, serve) as address:
            found.put(address)
            while not ended.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    try:
        yield found.get(timeout=ample(10))
    finally:
        ended.set()
        thread.join()


def test_an_answer_can_be_looked_for_while_the_loop_stands_still(run, certs):
    async def work():
        async with elsewhere(certs, echo) as address, dialled(certs, address) as stream:
            seen = []
            running = asyncio.ensure_future(stream.run(seen.append))
            await asyncio.sleep(0)
            assert not stream.look(0.01)
            for number in range(100):
                stream.write(bytes([number]) * 50)
                while len(seen) <= number:
                    assert stream.look(ample(10))
            running.cancel()
            return seen

    assert run(work()) == [bytes([number]) * 50 for number in range(100)]


def test_a_look_at_a_peer_that_left_finds_its_end(run, certs):
    async def leave(stream):
        await stream.read()

    async def work():
        async with elsewhere(certs, leave) as address, dialled(certs, address) as stream:
            running = asyncio.ensure_future(stream.run(print))
            await asyncio.sleep(0)
            stream.write(b"bye")
            assert stream.look(ample(10))
            assert not stream.look(ample(10))  # at once: nothing can come any more
            with pytest.raises(PeerUnavailable, match="closed"):
                await running

    run(work())


def test_what_was_written_arrives_though_the_writer_closes_with_something_unread(run, certs):
    """A socket closed so tells its peer to throw away what it has not read yet."""
    last = [bytes([number]) * 30_000 for number in range(8)]

    async def leave(stream):
        for frame in last:
            stream.write(frame)

    async def work():
        async with listening(certs, leave) as address, dialled(certs, address) as stream:
            for _ in range(40):
                stream.write(bytes(1000))
            seen = [await stream.read() for _ in last]
            with pytest.raises(PeerUnavailable, match="closed"):
                await stream.read()
            return seen

    assert run(work()) == last


class Transport(asyncio.Transport):
    """Where a stream writes in the test of its parser."""

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def abort(self):
        pass


@settings(deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
)
def test_frames_do_not_depend_on_how_bytes_arrive(frames, cuts):
    async def work():
        stream, seen = FrameStream(100), []
        stream.connection_made(Transport())
        running = asyncio.ensure_future(stream.run(seen.append))
        await asyncio.sleep(0)
        data = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
        place = 0
        while place < len(data):
            for cut in cuts:
                if data[place : place + cut]:
                    stream.data_received(data[place : place + cut])
                place += cut
        stream.connection_lost(None)
        with pytest.raises(PeerUnavailable):
            await running
        return seen

    assert asyncio.run(work()) == frames


def test_a_frame_that_comes_byte_by_byte(run):
    frame = bytes(range(256)) * 20

    async def work():
        stream = FrameStream(LIMITS.message_bytes)
        stream.connection_made(Transport())
        for byte in struct.pack("<I", len(frame)) + frame:
            stream.data_received(bytes([byte]))
        return await stream.read()

    assert run(work()) == frame
