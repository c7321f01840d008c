"""Secret sharing through real processes over mutual TLS."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from e2e.mpc_cluster import inputs, small_net, tls
from patience import ample

from secure_quant import Graph, reference
from secure_quant.errors import (
    ConfigError,
    DeadlineExceeded,
    HashMismatch,
    MalformedMessage,
    MessageTooLarge,
    ModelNotFound,
    PeerUnavailable,
    PermissionDenied,
    ShapeMismatch,
    ValueOutOfRange,
)
from secure_quant.keystream import Keystream
from secure_quant.mpc.protocol.plan import plan
from secure_quant.transport import InsecurePlaintext, Limits, aio_channel, sync_channel
from secure_quant.transport.certs import Authority
from secure_quant.wire import SHARING, info_to_proto, raised
from secure_quant.wire.gen.dealer_pb2 import DealOpen, DealRequest
from secure_quant.wire.gen.dealer_pb2_grpc import DealerServiceStub
from secure_quant.wire.gen.share_inference_pb2 import (
    InferRequest,
    ShareInferenceServiceGetModelRequest,
    ShareInferenceServiceGetModelResponse,
)
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceStub
from secure_quant_cli.cluster import Cluster
from secure_quant_client import AsyncMpcClient, MpcClient, Tls
from secure_quant_client.mpc.model import MpcModel

CALL_S = ample(5.0)


def told(folder: Path) -> dict[str, Any]:
    return {"lanes": 2}


@pytest.fixture
def client(cluster: Cluster, graph: Graph) -> Iterator[MpcClient]:
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster), expected_hash=graph.hash) as made:
        yield made


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_equals_the_reference(client: MpcClient, graph: Graph, batch: int) -> None:
    q = inputs(graph, batch, seed=batch)
    assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))


@pytest.mark.parametrize("value", [-128, 127])
def test_equals_the_reference_at_the_extremes(client: MpcClient, graph: Graph, value: int) -> None:
    q = np.full((2, *graph.input.shape), value, np.int8)
    assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))


def test_float_in_float_out(client: MpcClient, graph: Graph) -> None:
    x = np.random.default_rng(4).normal(0, 2, (2, *graph.input.shape)).astype(np.float32)
    y = client.infer(x)
    assert y.dtype == np.float32
    assert np.array_equal(y, reference.run(graph, x))


def test_costs_exactly_what_the_plan_promises(client: MpcClient, graph: Graph) -> None:
    for batch in (1, 5):
        stats = client.infer_int8_with_stats(inputs(graph, batch)).stats
        cost = plan(graph).cost(batch)
        assert (stats.samples, stats.rounds) == (batch, cost.rounds)
        assert stats.online_bytes_per_direction == cost.online_bytes_per_direction
        assert stats.offline_bytes_party0 == cost.offline_bytes_party0
        assert stats.offline_bytes_party1 == cost.offline_bytes_party1
        assert stats.bytes_up == batch * 200 + 32  # a share to one party, a seed to the other
        assert stats.bytes_down == 2 * 8 * batch * 7


def test_concurrent_clients_share_the_lanes(cluster: Cluster, graph: Graph) -> None:
    def one(number: int) -> bool:
        q = inputs(graph, 1 + number % 3, seed=number)
        with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as own:
            answers = [own.infer_int8(q) for _ in range(3)]
        return all(np.array_equal(each, reference.run_int(graph, q)) for each in answers)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(12)))


def test_asyncio_client(cluster: Cluster, graph: Graph) -> None:
    async def work() -> None:
        async with AsyncMpcClient(cluster.targets["mpc"], tls=tls(cluster)) as own:
            batches = [inputs(graph, 1 + number, seed=number) for number in range(5)]
            answers = await asyncio.gather(*(own.infer_int8_with_stats(q) for q in batches))
            for q, (answer, stats) in zip(batches, answers, strict=True):
                assert np.array_equal(answer, reference.run_int(graph, q))
                assert stats.samples == len(q)
            x = np.zeros((1, *graph.input.shape))
            assert np.array_equal(await own.infer(x), reference.run(graph, x))

    asyncio.run(work())


def test_the_callers_own_mistakes(client: MpcClient, graph: Graph) -> None:
    with pytest.raises(ShapeMismatch):
        client.infer_int8(inputs(graph, 1)[:, :1])
    with pytest.raises(ValueOutOfRange):
        client.infer(np.full((1, *graph.input.shape), np.nan))
    with pytest.raises(ValueOutOfRange):
        client.infer_int8(inputs(graph, 1).astype(np.int64) + 1000)


def test_another_model_is_refused(cluster: Cluster) -> None:
    with (
        MpcClient(cluster.targets["mpc"], tls=tls(cluster), expected_hash="0" * 64) as other,
        pytest.raises(ModelNotFound),
    ):
        other.graph  # noqa: B018


def test_targets_in_the_wrong_order_or_number(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="targets"):
        MpcClient(cluster.targets["mpc"][:1], tls=tls(cluster))
    swapped = MpcClient(cluster.targets["mpc"][::-1], tls=tls(cluster), limits=Limits(deadline_s=2))
    with swapped, pytest.raises((PeerUnavailable, DeadlineExceeded)):
        swapped.infer_int8(np.zeros((1, 2, 10, 10), np.int8))


def _request(graph: Graph, **changes: object) -> InferRequest:
    size = int(np.prod(graph.input.shape))
    fields = {
        "model_hash": graph.hash, "request_id": np.random.default_rng().bytes(16),
        "batch": 1, "share": bytes(size), "sharing": SHARING,
    }  # fmt: skip
    return InferRequest(**(fields | changes))


def _infer(cluster: Cluster, party: int, request: InferRequest, timeout: float = CALL_S) -> object:
    target = cluster.targets["mpc"][party]
    with sync_channel(target, tls(cluster), server_role=f"party{party}") as channel:
        try:
            return ShareInferenceServiceStub(channel).Infer(request, timeout=timeout)
        except grpc.RpcError as error:
            raise raised(error) from error


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model_hash": "f" * 64}, ModelNotFound),
        ({"model_hash": ""}, ModelNotFound),
        ({"request_id": b"short"}, MalformedMessage),
        ({"request_id": bytes(17)}, MalformedMessage),
        ({"batch": 0}, MalformedMessage),
        ({"batch": 2**31}, MessageTooLarge),
        ({"batch": 2}, MalformedMessage),
        ({"share": b""}, MalformedMessage),
        ({"share": bytes(7)}, MalformedMessage),
        ({"share": None}, MalformedMessage),
        ({"share": None, "seed": bytes(31)}, MalformedMessage),
        ({"share": bytes(8 * 200)}, MalformedMessage),  # eight bytes an element
        ({"sharing": 0}, MalformedMessage),
    ],
    ids=range(13),
)
def test_bad_requests_are_refused(cluster, graph, party, changes, error) -> None:
    with pytest.raises(error):
        _infer(cluster, party, _request(graph, **changes))


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("half", [{"share": bytes(8 * 200)}, {"share": None, "seed": bytes(32)}])
def test_clients_of_older_releases_are_refused_by_name(cluster, graph, party, half) -> None:
    """They shared mod 2^64, and stated no number for it."""
    with pytest.raises(MalformedMessage, match=r"way of sharing inputs: got 0.*same release"):
        _infer(cluster, party, _request(graph, sharing=0, **half))


@pytest.mark.parametrize("seeded", [None, 0, 1])
def test_whatever_bytes_come_the_answer_is_that_of_an_int8_input(cluster, graph, seeded) -> None:
    """A client need not share honestly: no bytes stand for anything but an int8 input."""
    rng = np.random.default_rng(77 if seeded is None else seeded)
    for octets in (
        rng.integers(0, 256, (2, 3, 200), np.uint8),
        np.full((2, 3, 200), 0xFF, np.uint8),
    ):
        request_id, halves = rng.bytes(16), [{"share": part.tobytes()} for part in octets]
        if seeded is not None:
            halves[seeded] = {"share": None, "seed": rng.bytes(32)}
            octets[seeded] = Keystream(halves[seeded]["seed"]).bytes(600).reshape(3, 200)
        requests = [_request(graph, request_id=request_id, batch=3, **half) for half in halves]
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(partial(_infer, cluster), (0, 1), requests))
        got = sum(np.frombuffer(each.share, "<u8") for each in both).view(np.int64).reshape(3, 7)
        q = (octets[0] ^ octets[1]).view(np.int8).reshape(3, *graph.input.shape)
        assert np.array_equal(got, reference.run_int(graph, q))


@pytest.mark.parametrize("party", [0, 1])
def test_a_client_that_sends_one_share_holds_up_nobody(
    cluster: Cluster, graph: Graph, client: MpcClient, party: int
) -> None:
    with ThreadPoolExecutor(8) as pool:
        lonely = [
            pool.submit(_infer, cluster, party, _request(graph), timeout=ample(3.0))
            for _ in range(8)
        ]
        q = inputs(graph, 1)
        for _ in range(5):
            answer = client.infer_int8(q, timeout=ample(2.0))
            assert np.array_equal(answer, reference.run_int(graph, q))
        for each in lonely:
            with pytest.raises(DeadlineExceeded):
                each.result()
    assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))


def test_a_request_id_is_good_once(cluster: Cluster, graph: Graph) -> None:
    request = _request(graph)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(_infer, cluster, party, request) for party in (0, 1)]
        assert all(len(each.result().share) == 8 * 7 for each in both)
    for party in (0, 1):
        with pytest.raises(MalformedMessage, match="used before"):
            _infer(cluster, party, request)


def test_parties_that_were_told_different_batches_refuse(cluster: Cluster, graph: Graph) -> None:
    request_id = bytes(range(16))
    size = int(np.prod(graph.input.shape))
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(
                _infer, cluster, party,
                _request(graph, request_id=request_id, batch=batch, share=bytes(batch * size)),
            )
            for party, batch in ((0, 1), (1, 2))
        ]  # fmt: skip
        for each in both:
            with pytest.raises((MalformedMessage, DeadlineExceeded)):
                each.result()


def test_without_a_certificate_nobody_gets_in(cluster: Cluster, graph: Graph) -> None:
    limits = Limits(deadline_s=2.0)
    stranger_ca = Authority()
    cert, key = stranger_ca.issue("client/mallory")
    stranger = Tls(ca=(cluster.certs / "ca.pem").read_bytes() + stranger_ca.pem, cert=cert, key=key)
    for security in (InsecurePlaintext(), stranger):
        with (
            MpcClient(cluster.targets["mpc"], tls=security, limits=limits) as other,
            pytest.raises((PeerUnavailable, DeadlineExceeded)),
        ):
            other.graph  # noqa: B018


@pytest.mark.parametrize("role", ["party1", "dealer", "he"])
def test_only_clients_may_ask_for_inference(cluster: Cluster, graph: Graph, role: str) -> None:
    other = tls(cluster, role)
    with sync_channel(cluster.targets["mpc"][0], other, server_role="party0") as channel:
        stub = ShareInferenceServiceStub(channel)
        request = ShareInferenceServiceGetModelRequest(model_hash=graph.hash)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModel(request, timeout=ample(5))
    assert isinstance(raised(caught.value), PermissionDenied)


@pytest.mark.parametrize(
    ("role", "party", "error"),
    [
        # Refused before they say anything; a write would race with the refusal.
        ("client", None, PermissionDenied),
        ("he", None, PermissionDenied),
        ("party0", 1, PermissionDenied),
        ("party1", 0, PermissionDenied),
        ("party1", 7, MalformedMessage),
    ],
)
def test_the_dealer_deals_to_the_parties_alone(cluster, role, party, error) -> None:
    async def work() -> None:
        dealer = cluster.processes["dealer"].args
        target = dealer[dealer.index("--listen") + 1]
        channel = aio_channel(target, tls(cluster, role), server_role="dealer")
        async with channel:
            call = DealerServiceStub(channel).Deal(timeout=ample(5))
            try:
                if party is not None:
                    opened = DealOpen(session_id=bytes(16), party=party)
                    await call.write(DealRequest(open=opened))
                await call.read()
            except grpc.RpcError as failed:
                raise raised(failed) from failed

    with pytest.raises(error):
        asyncio.run(work())


def test_both_parties_must_serve_the_same_model(graph: Graph) -> None:
    answers = [
        ShareInferenceServiceGetModelResponse(
            info=info_to_proto(each, b"{}"), party=party, sharing=SHARING
        )
        for party, each in enumerate((graph, small_net(seed=6)))
    ]
    with pytest.raises(HashMismatch, match="different models"):
        MpcModel.receive(answers, None, message_bytes=2**20)
    with pytest.raises(MalformedMessage, match="party"):
        MpcModel.receive(answers[::-1], None, message_bytes=2**20)
