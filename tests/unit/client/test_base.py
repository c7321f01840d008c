import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from patience import ample

from secure_quant.errors import (
    ConfigError,
    DeadlineExceeded,
    InsecureRefused,
    Overloaded,
    PeerUnavailable,
    ServiceError,
)
from secure_quant.transport import InsecurePlaintext, add_port
from secure_quant.transport.certs import Authority
from secure_quant.wire.gen import secure_inference_pb2_grpc, share_inference_pb2_grpc
from secure_quant_cli.cluster import free_ports
from secure_quant_client import (
    AsyncHeClient,
    AsyncLeveledClient,
    AsyncMpcClient,
    HeClient,
    LeveledClient,
    Limits,
    MpcClient,
    OneHostClient,
    Tls,
)
from secure_quant_client.connection import call_metadata
from secure_quant_client.driver import Deadline

SYNC = (HeClient, LeveledClient, MpcClient)
ASYNC = (AsyncHeClient, AsyncLeveledClient, AsyncMpcClient)


def test_a_token_is_never_sent_in_the_clear() -> None:
    with pytest.raises(InsecureRefused, match="token"):
        call_metadata(InsecurePlaintext(), "secret")
    with pytest.raises(InsecureRefused):
        HeClient("localhost:1", tls=None)


def test_a_token_that_is_no_header_is_refused_without_quoting_it() -> None:
    authority = Authority()
    tls = Tls(authority.pem, *authority.issue("client"))
    for token in ("a\nb", "ü"):
        with pytest.raises(ConfigError) as caught:
            call_metadata(tls, token)
        assert token not in str(caught.value)
    assert call_metadata(tls, "abc") == (("authorization", "Bearer abc"),)
    assert call_metadata(tls, None) == ()


def test_a_deadline_ends() -> None:
    assert 900 < Deadline(1000).remaining() <= 1000
    spent = Deadline(1e-9)
    time.sleep(0.001)
    with pytest.raises(DeadlineExceeded):
        spent.remaining()
    with pytest.raises(ConfigError):
        Deadline(0)


def made(kind: type, port: int = 1) -> object:
    """A client of whichever kind, of servers that all listen on one port."""
    target = f"127.0.0.1:{port}"
    mpc = kind in (MpcClient, AsyncMpcClient)
    limits = Limits(deadline_s=ample(20))
    return kind([target] * 2 if mpc else target, tls=InsecurePlaintext(), limits=limits)


@pytest.fixture(scope="module")
def refusing() -> int:
    """The port of a server that knows both services and refuses every call as overloaded."""

    class Refusing(
        secure_inference_pb2_grpc.SecureInferenceServiceServicer,
        share_inference_pb2_grpc.ShareInferenceServiceServicer,
    ):
        def GetModel(self, request: object, context: grpc.ServicerContext) -> None:  # noqa: N802
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")

    server = grpc.server(futures.ThreadPoolExecutor(2))
    secure_inference_pb2_grpc.add_SecureInferenceServiceServicer_to_server(Refusing(), server)
    share_inference_pb2_grpc.add_ShareInferenceServiceServicer_to_server(Refusing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@pytest.mark.parametrize("kind", SYNC)
def test_what_every_client_for_threads_does(kind: type, refusing: int) -> None:
    with made(kind, refusing) as client, pytest.raises(Overloaded, match="no room"):
        client.infer([[1.0]])
    client.close()  # twice does no harm
    with pytest.raises(ServiceError, match="closed"):
        client.infer([[1.0]])
    (nobody,) = free_ports(1)
    with made(kind, nobody) as client, pytest.raises(PeerUnavailable):
        client.infer([[1.0]])


@pytest.mark.parametrize("kind", ASYNC)
def test_what_every_client_for_asyncio_does(kind: type, refusing: int) -> None:
    async def use() -> None:
        async with made(kind, refusing) as client:
            with pytest.raises(Overloaded, match="no room"):
                await client.infer([[1.0]])
        await client.close()
        with pytest.raises(ServiceError, match="closed"):
            await client.infer([[1.0]])
        (nobody,) = free_ports(1)
        async with made(kind, nobody) as client:
            with pytest.raises(PeerUnavailable):
                await client.infer([[1.0]])

    asyncio.run(use())


def test_a_wrong_certificate_is_explained() -> None:
    authority = Authority()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    tls = Tls(authority.pem, *authority.issue("party1"))
    port = add_port(server, "127.0.0.1:0", tls)
    server.start()
    try:
        own = Tls(authority.pem, *authority.issue("client"))
        client = HeClient(f"127.0.0.1:{port}", tls=own)
        with client, pytest.raises(PeerUnavailable, match="another role"):
            client.infer([[1.0]])
        stranger = Authority()
        own = Tls(stranger.pem, *stranger.issue("client"))
        client = MpcClient([f"127.0.0.1:{port}"] * 2, tls=own)
        with client, pytest.raises(PeerUnavailable, match="not signed by the ca"):
            client.infer([[1.0]])
    finally:
        server.stop(None)


@pytest.mark.parametrize("kind", [HeClient, OneHostClient, LeveledClient])
@pytest.mark.parametrize("target", [["a.example:1"], b"a.example:1", None])
def test_one_server_has_one_address(kind: type, target: object) -> None:
    with pytest.raises(ConfigError, match=r"target: got \w+, expected one"):
        kind(target, tls=InsecurePlaintext())


@pytest.mark.parametrize("kind", [HeClient, OneHostClient])
def test_a_stock_below_none_is_refused(kind: type) -> None:
    with pytest.raises(ConfigError, match="stock"):
        kind("a.example:1", tls=InsecurePlaintext(), stock=-1)


NO_TIMES = [0, -1, float("inf"), float("nan"), "5", b"5", True, [1], 10**400, 1e300, 2**40]


@pytest.mark.parametrize("timeout", NO_TIMES, ids=lambda each: repr(each)[:12])
def test_a_timeout_that_is_no_time_is_named(timeout: object) -> None:
    for kind in SYNC:
        with made(kind) as client, pytest.raises(ConfigError, match="timeout"):
            (client.infer if kind is LeveledClient else client.infer_int8)([[1]], timeout=timeout)

    async def use(kind: type) -> None:
        async with made(kind) as client:
            await client.infer([[1.0]], timeout=timeout)

    for kind in ASYNC:
        with pytest.raises(ConfigError, match="timeout"):
            asyncio.run(use(kind))
    with pytest.raises(ConfigError, match="deadline_s"):
        Limits(deadline_s=timeout)


SOON, LATE = 0.4, ample(20.0)
"""A caller's timeout, and the deadlines that are not his."""


@pytest.fixture
def silent() -> Iterator[tuple[int, threading.Event]]:
    """The port of a server that takes every call and answers none until the test is over, and an
    event that says when the first has come."""
    over, came = threading.Event(), threading.Event()

    class Silent(
        secure_inference_pb2_grpc.SecureInferenceServiceServicer,
        share_inference_pb2_grpc.ShareInferenceServiceServicer,
    ):
        def GetModel(self, request: object, context: grpc.ServicerContext) -> None:  # noqa: N802
            came.set()
            over.wait(LATE)
            context.abort(grpc.StatusCode.CANCELLED, "over")

    server = grpc.server(futures.ThreadPoolExecutor(8))
    secure_inference_pb2_grpc.add_SecureInferenceServiceServicer_to_server(Silent(), server)
    share_inference_pb2_grpc.add_ShareInferenceServiceServicer_to_server(Silent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, came
    over.set()
    server.stop(None).wait()


def late(kind: type, port: int) -> object:
    """A client whose own deadline is far off."""
    target = f"127.0.0.1:{port}"
    mpc = kind in (MpcClient, AsyncMpcClient)
    limits = Limits(deadline_s=LATE)
    return kind([target] * 2 if mpc else target, tls=InsecurePlaintext(), limits=limits)


@pytest.mark.parametrize("kind", SYNC)
def test_one_deadline_bounds_the_fetch_and_the_wait_for_another_thread(
    kind: type, silent: tuple[int, threading.Event]
) -> None:
    port, came = silent
    with late(kind, port) as client, futures.ThreadPoolExecutor(1) as pool:
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.infer([[1.0]], timeout=SOON)  # the model's fetch
        came.clear()
        first = pool.submit(client.infer, [[1.0]])
        assert came.wait(LATE)
        with pytest.raises(DeadlineExceeded):
            client.infer([[1.0]], timeout=SOON)  # the first one holds the connection
        assert time.monotonic() - start < LATE / 2
        client.close()  # which ends the first
        assert isinstance(first.exception(LATE / 2), ServiceError)


@pytest.mark.parametrize("kind", ASYNC)
def test_one_deadline_bounds_everything_for_asyncio_too(
    kind: type, silent: tuple[int, threading.Event]
) -> None:
    port, came = silent

    async def use() -> None:
        async with late(kind, port) as client:
            with pytest.raises(DeadlineExceeded):
                await client.infer([[1.0]], timeout=SOON)
            came.clear()
            first = asyncio.ensure_future(client.infer([[1.0]]))
            assert await asyncio.to_thread(came.wait, LATE)
            with pytest.raises(DeadlineExceeded):
                await client.infer([[1.0]], timeout=SOON)
            await client.close()
            with pytest.raises(ServiceError):
                await asyncio.wait_for(first, LATE / 2)

    start = time.monotonic()
    asyncio.run(use())
    assert time.monotonic() - start < LATE / 2
