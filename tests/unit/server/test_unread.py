"""A peer that calls and grants no window: what it is told stays with the server."""

import asyncio
import time
from collections.abc import Callable

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from patience import ample
from unit.server.bare_http2 import DATA, HEADERS, BareHttp2, bare_http2
from unit.server.support import calling, run, serving, tls
from unit.server.test_guard import request

from secure_quant.errors import Overloaded
from secure_quant_server.common import admission
from secure_quant_server.common.admission import Held
from secure_quant_server.he.service import SERVICE

WATCH = "/grpc.health.v1.Health/Watch"
LINEAR = "/secure_quant.v1.SecureInferenceService/EvaluateLinear"
ASK = health_pb2.HealthCheckRequest()


async def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + ample(10)
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def answered(peer: BareHttp2, stream: int) -> None:
    await eventually(lambda: bool(peer.got(HEADERS, stream)))


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_watcher_that_does_not_read_holds_up_no_change_of_state_and_no_stop(service: str) -> None:
    asked = health_pb2.HealthCheckRequest(service=service)

    async def test() -> None:
        async with (
            serving() as server,
            calling(server) as (_, channel),
            bare_http2(server.port, tls("client/eve"), "he", window=0) as peer,
        ):
            stream = peer.call(WATCH, asked.SerializeToString())
            await answered(peer, stream)
            await asyncio.sleep(0.1)
            assert not peer.got(DATA, stream)
            health = health_pb2_grpc.HealthStub(channel)
            for expected in (False, True, False):
                server.set_serving(expected)
                found = await health.Check(asked, timeout=ample(5))
                assert found.status == (1 if expected else 2)
            async with asyncio.timeout(ample(5)):
                await server.stop()

    run(test)


def test_a_watcher_that_reads_late_learns_the_latest_state() -> None:
    async def test() -> None:
        async with serving() as server, calling(server) as (_, channel):
            server.set_serving(True)
            watch = health_pb2_grpc.HealthStub(channel).Watch(ASK, timeout=ample(10))
            assert (await watch.read()).status == 1
            server.set_serving(False)
            assert (await watch.read()).status == 2
            gone = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="\x1b[31mnone"), timeout=ample(10)
            )
            assert (await gone.read()).status == 3  # SERVICE_UNKNOWN
            server.set_serving(True)
            assert (await watch.read()).status == 1
            watch.cancel()
            gone.cancel()

    run(test)


def test_answers_that_nobody_reads_are_bounded_for_each_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 2**20
    monkeypatch.setattr(admission, "UNREAD_BYTES", 2 * 10 * (size + 2**15))

    async def answer(_: bytes) -> bytes:
        return bytes(size)

    async def test() -> None:
        async with serving(answer) as server:
            async with bare_http2(server.port, tls("client/eve"), "he", window=0) as peer:
                body = request().SerializeToString()
                streams = [peer.call(LINEAR, body) for _ in range(30)]
                for stream in streams:
                    await answered(peer, stream)
                refused = [s for s in streams if b"not read" in b"".join(peer.got(HEADERS, s))]
                assert len(refused) == 20
                # Others are served, and so is the same one once it has let go.
                async with calling(server, tls("client/bob")) as (bob, _):
                    found = await bob.EvaluateLinear(request(), timeout=ample(5))
                    assert len(found.ciphertexts) == size
                    for _ in range(30):  # answers that are read leave nothing behind
                        await bob.EvaluateLinear(request(), timeout=ample(5))
            async with calling(server, tls("client/eve")) as (eve, _):
                room = server.guard._admission._unread._of
                await eventually(lambda: not room)
                for _ in range(30):
                    await eve.EvaluateLinear(request(), timeout=ample(5))
                await eventually(lambda: not room)

    run(test)


def test_large_answers_have_room_for_several_of_them() -> None:
    held = Held(100)
    held.add("alice", 1000, several=8)
    for _ in range(7):
        held.add("alice", 1000, several=8)
    with pytest.raises(Overloaded):
        held.add("alice", 1000, several=8)
    held.add("bob", 1000, several=8)
    held.drop("alice", 1000)
    held.add("alice", 1000, several=8)
