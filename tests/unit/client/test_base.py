import asyncio
import time
from concurrent import futures

import grpc
import pytest

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
    Tls,
)
from secure_quant_client.base import Deadline, call_metadata

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
    assert 9 < Deadline(10).remaining() <= 10
    spent = Deadline(1e-9)
    time.sleep(0.001)
    with pytest.raises(DeadlineExceeded):
        spent.remaining()
    with pytest.raises(ConfigError):
        Deadline(0)


def test_no_stats_before_the_first_inference() -> None:
    with HeClient("localhost:1", tls=InsecurePlaintext()) as client, pytest.raises(ServiceError):
        _ = client.stats


def made(kind: type, port: int = 1) -> object:
    """A client of whichever kind, of servers that all listen on one port."""
    target = f"127.0.0.1:{port}"
    mpc = kind in (MpcClient, AsyncMpcClient)
    limits = Limits(deadline_s=5)
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
    with made(kind, refusing) as client:
        with pytest.raises(ServiceError, match="no inference"):
            _ = client.stats
        with pytest.raises(Overloaded, match="no room"):
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
            with pytest.raises(ServiceError, match="no inference"):
                _ = client.stats
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


@pytest.mark.parametrize("kind", SYNC)
def test_a_timeout_of_nothing_is_refused(kind: type) -> None:
    with made(kind) as client, pytest.raises(ConfigError, match="timeout"):
        (client.infer if kind is LeveledClient else client.infer_int8)([[1]], timeout=0)
