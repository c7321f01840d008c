"""Homomorphic inference through a real server process over mutual TLS."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from e2e.he_server import HeServerProcess, inputs, lenet
from patience import ample

from secure_quant import Graph, reference
from secure_quant.errors import (
    BudgetExceeded,
    ConfigError,
    DeadlineExceeded,
    ModelNotFound,
    PeerUnavailable,
    PermissionDenied,
    ServiceError,
    ShapeMismatch,
    ValueOutOfRange,
)
from secure_quant.he.bundle import load_client, split
from secure_quant.transport import Limits
from secure_quant.transport.certs import make_all
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client import AsyncHeClient, HeClient, InsecurePlaintext, Tls


@pytest.fixture(scope="module")
def graph() -> Graph:
    return lenet()


@pytest.fixture(scope="module")
def server(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeServerProcess]:
    with HeServerProcess(tmp_path_factory.mktemp("he"), graph, workers=2) as started:
        yield started


@pytest.mark.parametrize("batch", [1, 3])
def test_every_node_equals_the_reference(server: HeServerProcess, graph: Graph, batch: int) -> None:
    q = inputs(graph, batch)
    with HeClient(server.target, tls=server.tls(), expected_hash=graph.hash) as client:
        values = client.trace_int8(q)
    expected = reference.trace(graph, q)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(values[name], value), name


def test_float_in_float_out(server: HeServerProcess, graph: Graph) -> None:
    x = np.random.default_rng(4).normal(0, 2, (2, *graph.input.shape)).astype(np.float32)
    with HeClient(server.target, tls=server.tls()) as client:
        y = client.infer(x)
    assert y.dtype == np.float32
    assert np.array_equal(y, reference.run(graph, x))


def test_what_was_sent_is_what_the_plan_says(server: HeServerProcess, graph: Graph) -> None:
    _, plan = load_client(split(graph)["client"])
    with HeClient(server.target, tls=server.tls()) as client:
        for batch in (1, 2):
            stats = client.infer_int8_with_stats(inputs(graph, batch)).stats
            cost = plan.cost(batch)
            assert (stats.bytes_up, stats.bytes_down) == (cost.bytes_up, cost.bytes_down)
            assert (stats.rounds, stats.samples) == (len(plan.steps), batch)
            assert 0 < stats.engine_seconds < stats.latency


def test_many_clients_at_once(server: HeServerProcess, graph: Graph) -> None:
    async def main() -> None:
        async with (
            AsyncHeClient(server.target, tls=server.tls()) as first,
            AsyncHeClient(server.target, tls=server.tls(), stock=0) as second,
        ):
            qs = [inputs(graph, 1 + i % 2, seed=i) for i in range(8)]
            ys = await asyncio.gather(
                *((first, second)[i % 2].infer_int8(q) for i, q in enumerate(qs))
            )
            for q, y in zip(qs, ys, strict=True):
                assert np.array_equal(y, reference.run_int(graph, q))

    asyncio.run(asyncio.wait_for(main(), ample(60)))


def test_asyncio_client_speaks_floats_and_has_stats(server: HeServerProcess, graph: Graph) -> None:
    async def main() -> None:
        async with AsyncHeClient(server.target, tls=server.tls()) as client:
            await client.prepare()
            x = np.full((1, *graph.input.shape), 0.5, np.float32)
            y, stats = await client.infer_with_stats(x)
            assert np.array_equal(y, reference.run(graph, x))
            assert (await client.graph()).hash == graph.hash
            assert stats.rounds == 4

    asyncio.run(asyncio.wait_for(main(), ample(60)))


def test_a_batch_above_the_message_limit_goes_in_parts(
    server: HeServerProcess, graph: Graph
) -> None:
    q = inputs(graph, 5)
    limits = Limits(message_bytes=60_000)
    with HeClient(server.target, tls=server.tls(), limits=limits) as client:
        y, stats = client.infer_int8_with_stats(q)
        assert stats.rounds > 4
        assert stats.samples == 5
    assert np.array_equal(y, reference.run_int(graph, q))


def test_bad_inputs_never_leave_the_client(server: HeServerProcess, graph: Graph) -> None:
    with HeClient(server.target, tls=server.tls()) as client:
        with pytest.raises(ShapeMismatch):
            client.infer(np.zeros((1, 3, 3, 3)))
        with pytest.raises(ValueOutOfRange):
            client.infer(np.full((1, *graph.input.shape), np.nan))
        with pytest.raises(ValueOutOfRange):
            client.infer_int8(np.full((1, *graph.input.shape), 200))


def test_another_hash_than_served(server: HeServerProcess) -> None:
    client = HeClient(server.target, tls=server.tls(), expected_hash="0" * 64)
    with client, pytest.raises(ModelNotFound):
        _ = client.graph


@pytest.mark.parametrize("role", ["party0", "dealer", "he"])
def test_another_role_is_refused(server: HeServerProcess, role: str) -> None:
    client = HeClient(server.target, tls=server.tls(role))
    with client, pytest.raises(PermissionDenied, match=role):
        _ = client.graph


def test_another_authority_is_refused(server: HeServerProcess, tmp_path: Path) -> None:
    make_all(tmp_path)
    ca = server.certs / "ca.pem"
    stranger = Tls(tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key")
    with HeClient(server.target, tls=stranger) as client, pytest.raises(PeerUnavailable):
        _ = client.graph  # the client does not trust the server
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(),
        (tmp_path / "client.key").read_bytes(),
        (tmp_path / "client.pem").read_bytes(),
    )
    assert _refused(server, credentials)  # nor the server the client
    assert _refused(server, grpc.ssl_channel_credentials(ca.read_bytes()))  # no certificate at all


def _refused(server: HeServerProcess, credentials: grpc.ChannelCredentials) -> bool:
    options = [("grpc.ssl_target_name_override", "he.secure-quant.internal")]
    with grpc.secure_channel(server.target, credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            SecureInferenceServiceStub(channel).GetModel(GetModelRequest(), timeout=ample(5))
        return type(raised(caught.value)) is PeerUnavailable


def test_plaintext_is_refused(server: HeServerProcess) -> None:
    client = HeClient(server.target, tls=InsecurePlaintext())
    with client, pytest.raises(PeerUnavailable):
        _ = client.graph


def test_a_deadline_is_kept(server: HeServerProcess, graph: Graph) -> None:
    with HeClient(server.target, tls=server.tls()) as client:
        q = inputs(graph, 1)
        client.infer_int8(q)
        with pytest.raises(DeadlineExceeded):
            client.infer_int8(q, timeout=0.001)
        assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))
        with pytest.raises(ConfigError, match="timeout"):
            client.infer_int8(q, timeout=0)


def test_a_closed_client_says_so(server: HeServerProcess, graph: Graph) -> None:
    with HeClient(server.target, tls=server.tls()) as client:
        client.infer_int8(inputs(graph, 1))
    with pytest.raises(ServiceError, match="closed"):
        client.infer_int8(inputs(graph, 1))

    async def main() -> None:
        async with AsyncHeClient(server.target, tls=server.tls()) as client:
            await client.infer_int8(inputs(graph, 1))
        with pytest.raises(ServiceError, match="closed"):
            await client.infer_int8(inputs(graph, 1))

    asyncio.run(asyncio.wait_for(main(), ample(60)))


def test_two_models_a_budget_and_no_workers(graph: Graph, tmp_path: Path) -> None:
    other = lenet(9)
    with HeServerProcess(tmp_path, graph, other, workers=0, budget=3) as server:
        with HeClient(server.target, tls=server.tls()) as client, pytest.raises(ModelNotFound):
            _ = client.graph
        for model in (graph, other):
            q = inputs(model, 2)
            with HeClient(server.target, tls=server.tls(), expected_hash=model.hash) as client:
                assert np.array_equal(client.infer_int8(q), reference.run_int(model, q))
                with pytest.raises(BudgetExceeded):
                    client.infer_int8(q)
