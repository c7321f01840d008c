"""Room: who has how much of it, and what is decided before a body is read."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from patience import ample
from unit.server.support import calling, eventually, graph, run, serving, tls
from unit.server.test_guard import error_of, request

from secure_quant.errors import (
    DeadlineExceeded,
    MalformedMessage,
    MessageTooLarge,
    Overloaded,
    PeerUnavailable,
    PermissionDenied,
    SecureQuantError,
    ServiceError,
)
from secure_quant.transport import Limits, channels
from secure_quant.transport.channels import STREAMS
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest
from secure_quant_server.common import GrpcServer
from secure_quant_server.common.admission import OPEN_PER_CLIENT, Admission, Held

ASK = health_pb2.HealthCheckRequest()
LINEAR = "/secure_quant.v1.SecureInferenceService/EvaluateLinear"


async def names(calls: list[grpc.aio.UnaryUnaryCall]) -> Counter[str]:
    """Of the errors that calls end with."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(
        type(raised(each)).__name__ if isinstance(each, grpc.RpcError) else "answered"
        for each in ended
    )


async def first(stream: grpc.aio.UnaryStreamCall) -> SecureQuantError | None:
    """Why a stream of health was not opened; None if it was."""
    try:
        await stream.read()
    except grpc.RpcError as error:
        return raised(error)
    return None


def test_idle_streams_of_one_client_stop_nobody() -> None:
    async def test() -> None:
        async with (
            serving(max_calls=4) as server,
            calling(server) as (_, channel),
            calling(server) as (_, second),
            calling(server) as (_, third),
            calling(server, tls("client/bob")) as (bob, bob_channel),
        ):
            stubs = [health_pb2_grpc.HealthStub(each) for each in (channel, second, third)]
            watches = [stubs[n % 3].Watch(ASK) for n in range(300)]
            refused = [each for each in await asyncio.gather(*map(first, watches)) if each]
            assert len(refused) == 300 - OPEN_PER_CLIENT
            assert {type(each) for each in refused} == {Overloaded}
            await bob.GetModel(GetModelRequest(), timeout=ample(5))
            await health_pb2_grpc.HealthStub(bob_channel).Check(ASK, timeout=ample(5))
            # Alice's own calls have room too: health does not count against them.
            async with calling(server) as (alice, _):
                await alice.GetModel(GetModelRequest(), timeout=ample(5))

    run(test)


def test_streams_of_health_and_reflection_end() -> None:
    async def test() -> None:
        async with serving(watch_s=0.3) as server, calling(server) as (_, channel):
            watch = health_pb2_grpc.HealthStub(channel).Watch(ASK, timeout=ample(10))
            assert await first(watch) is None
            ended = await first(watch)
            assert type(ended) is not DeadlineExceeded
            assert isinstance(ended, ServiceError)
            listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                timeout=ample(10)
            )
            await listed.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            assert await first(listed) is None
            assert isinstance(await first(listed), ServiceError)

    run(test)


def test_one_client_does_not_take_every_place() -> None:
    held, begun = asyncio.Event(), []

    async def wait(data: bytes) -> bytes:
        begun.append(data)
        await held.wait()
        return data

    async def test() -> None:
        async with (
            serving(wait, max_calls=8, per_client=3) as server,
            calling(server) as (alice, _),
            calling(server, tls("client/bob")) as (bob, _),
        ):
            calls = [alice.EvaluateLinear(request(), timeout=ample(10)) for _ in range(5)]
            said = [asyncio.ensure_future(names([call])) for call in calls]
            await eventually(lambda: sum(each.done() for each in said) == 2)
            theirs = bob.EvaluateLinear(request(), timeout=ample(10))
            await eventually(lambda: len(begun) == 4)  # three of alice's, and bob's
            held.set()
            await theirs
            found = sum((await asyncio.gather(*said)), Counter())
            assert found == {"answered": 3, "Overloaded": 2}

    run(test)


def test_one_connection_has_a_bound_on_its_streams() -> None:
    """Whatever is free besides: what lies above it waits in the caller's own memory."""

    async def test() -> None:
        async with (
            serving(max_calls=1000, per_client=1000) as server,
            calling(server) as (_, channel),
            calling(server, tls("client/bob")) as (bob, _),  # over another connection
        ):
            linear = channel.stream_unary(LINEAR)
            calls = [linear(timeout=ample(30)) for _ in range(STREAMS + 50)]  # no body ever comes
            await eventually(lambda: _value(server) == STREAMS)
            for _ in range(10):  # round trips, in which one more would have arrived
                await bob.GetModel(GetModelRequest(), timeout=ample(5))
            assert _value(server) == STREAMS
            for call in calls:
                call.cancel()
            await eventually(lambda: _value(server) == 0)

    run(test)


def test_connections_are_bounded_and_silent_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens them: no certificate has been seen yet."""
    monkeypatch.setattr(channels, "HANDSHAKE_MS", 6000)

    async def test() -> None:
        async with (
            serving(max_connections=4) as server,
            calling(server) as (stub, _),
        ):
            await stub.GetModel(GetModelRequest(), timeout=5)
            with ExitStack() as stack:
                address = "127.0.0.1", server.port
                silent = [stack.enter_context(socket.create_connection(address)) for _ in range(20)]
                await eventually(lambda: sum(map(closed, silent)) == 17)
                # Who is connected stays so; who is not has to wait until the silent are sent away.
                await stub.GetModel(GetModelRequest(), timeout=5)
                async with calling(server, tls("client/bob")) as (bob, _):
                    error = await error_of(bob.GetModel(GetModelRequest(), timeout=1))
                    assert isinstance(error, PeerUnavailable | DeadlineExceeded)
                    await bob.GetModel(GetModelRequest(), timeout=30, wait_for_ready=True)
                assert all(map(closed, silent))

    run(test)


def closed(connection: socket.socket) -> bool:
    """By the other end, which has not said a word."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_an_unused_connection_ends_and_its_client_connects_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "UNUSED_MS", 500)

    async def test() -> None:
        async with serving() as server, calling(server) as (stub, channel):
            for _ in range(2):
                await stub.GetModel(GetModelRequest(), timeout=5)
                assert channel.get_state() is grpc.ChannelConnectivity.READY
                await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.IDLE)

    run(test)


def _value(server: GrpcServer) -> float:
    (metric,) = server.metrics.running.collect()
    return metric.samples[0].value


def test_a_caller_without_the_right_is_refused_before_it_sends_its_body() -> None:
    """It never sends one here, and still has its answer."""

    async def test() -> None:
        async with serving() as server, calling(server, tls("dealer")) as (_, channel):
            call = channel.stream_unary(LINEAR)(timeout=ample(10))
            error = await error_of(call)
            assert type(error) is PermissionDenied

    run(test)


def test_a_body_that_is_no_message_is_named_and_counted() -> None:
    async def test() -> None:
        async with serving() as server, calling(server) as (stub, channel):
            error = await error_of(channel.unary_unary(LINEAR)(b"\xff" * 9, timeout=ample(5)))
            assert type(error) is MalformedMessage
            assert "EvaluateLinear" in str(error)
            empty = channel.stream_unary(LINEAR)(iter(()), timeout=ample(5))
            assert type(await error_of(empty)) is MalformedMessage
            opening = channel.stream_unary(LINEAR.replace("EvaluateLinear", "OpenSession"))
            error = await error_of(opening(iter([b"\xff" * 9]), timeout=ample(5)))
            assert type(error) is MalformedMessage
            assert counted(server, "INVALID_ARGUMENT") == 3
            await stub.GetModel(GetModelRequest(), timeout=ample(5))

    run(test)


def counted(server: GrpcServer, code: str) -> float:
    (metric,) = server.metrics.calls.collect()
    return sum(
        sample.value
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["code"] == code
    )


def test_no_longer_request_is_taken_than_the_models_need() -> None:
    async def test() -> None:
        big = Limits(message_bytes=2**26)
        async with (
            serving(request_bytes=10_000) as server,
            calling(server, limits=big) as (stub, _),
        ):
            assert type(await error_of(stub.EvaluateLinear(request(bytes(10_001))))) is (
                MessageTooLarge
            )
            await stub.EvaluateLinear(request(bytes(9_000)))
            assert (await stub.GetModel(GetModelRequest())).info.model_hash == graph().hash

    run(test)


@contextmanager
def room(admission: Admission, client: str, *, is_open: bool = False) -> Iterator[None]:
    admission.enter(client, is_open=is_open)
    try:
        yield
    finally:
        admission.leave(client, is_open=is_open)


def test_bodies_take_turns_and_must_arrive() -> None:
    async def test() -> None:
        admission = Admission(max_calls=9, per_client=9, message_bytes=2**40, body_s=0.2)
        order: list[str] = []

        async def receive(client: str, seconds: float) -> None:
            async def read() -> None:
                order.append(client)
                await asyncio.sleep(seconds)

            await admission.body(client, read)

        with ExitStack() as stack:
            for client in ("slow", "slow", "slow", "quick"):
                stack.enter_context(room(admission, client))
            slow = [asyncio.create_task(receive("slow", 60)) for _ in range(3)]
            await eventually(lambda: order == ["slow"])
            await receive("quick", 0)  # half of the turns at most are one client's
            assert order == ["slow", "quick"]
            for task in slow:
                with pytest.raises(DeadlineExceeded):
                    await task
            assert order.count("slow") == 3

    run(test)


def test_what_waits_is_bounded_and_one_caller_has_half() -> None:
    held = Held(100)
    with held.take("a", 30):
        with held.take("a", 20):
            with pytest.raises(Overloaded), held.take("a", 1):
                pass
            with held.take("b", 45), pytest.raises(Overloaded), held.take("b", 6):
                pass
        with held.take("a", 20):
            pass
    # Large models have large requests: one at a time.
    with held.take("c", 1000), pytest.raises(Overloaded), held.take("c", 1):
        pass
    with held.take("c", 1000):
        pass


def test_places_are_given_back() -> None:
    admission = Admission(max_calls=2, per_client=1, message_bytes=2**20)
    for _ in range(3):
        with room(admission, "a"), room(admission, "b"):
            with pytest.raises(Overloaded), room(admission, "a"):
                pass
            with pytest.raises(Overloaded), room(admission, "c"):
                pass
            assert admission.running == 2
            with room(admission, "a", is_open=True):
                assert admission.running == 2
    assert admission.running == 0
