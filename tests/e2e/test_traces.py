"""One trace over client, both parties, dealer and HE server, which holds ids and no secret."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from e2e.collector import Collector, attributes, collecting
from e2e.mpc_cluster import small_net

from secure_quant import Graph, reference
from secure_quant.errors import SecureQuantError
from secure_quant.he.bundle import split as split_he
from secure_quant.mpc.protocol.bundle import split as split_mpc
from secure_quant.transport import Tls, sync_channel
from secure_quant.transport.certs import make_all
from secure_quant.wire import SHARING
from secure_quant.wire.gen.share_inference_pb2 import InferRequest
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceStub
from secure_quant_cli.cluster import Cluster
from secure_quant_client import AsyncMpcClient, HeClient, MpcClient

trace = pytest.importorskip("opentelemetry.trace")
sdk = pytest.importorskip("opentelemetry.sdk.trace")
exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
pytestmark = pytest.mark.heavy

PLANTED = b"planted"
TOKEN = "planted token"  # noqa: S105
ROLES = ("dealer", "party0", "party1", "he")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_net()


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[str, Collector]]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(
    graph: Graph, collector: tuple[str, Collector], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder, (url, _) = tmp_path_factory.mktemp("traces"), collector
    make_all(folder / "certs", client="planted-client")
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (folder / "tokens").write_text(f"planted-name {digest}\n")
    for engine, made in (("mpc", split_mpc(graph)), ("he", split_he(graph))):
        (folder / engine).mkdir()
        for role, data in made.items():
            (folder / engine / f"{role}.sqb").write_bytes(data)
    options = {role: ["--traces", url] for role in ROLES}
    for role in ROLES[1:]:
        options[role] += ["--tokens", f"{folder}/tokens"]
    bundles = {"mpc": folder / "mpc", "he": folder / "he"}
    with Cluster(folder / "certs", folder / "logs", bundles, options=options) as started:
        yield started


@pytest.fixture(scope="module")
def tracer(collector: tuple[str, Collector]) -> Iterator[object]:
    """This test is the application: it sets OpenTelemetry up as any does."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = sdk.TracerProvider(resource=Resource({"service.name": "application"}))
    exporter = exporters.OTLPSpanExporter(endpoint=collector[0], insecure=True)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield provider.get_tracer("application")
    provider.shutdown()


def planted(graph: Graph, count: int) -> np.ndarray:
    """Inputs whose int8 spell what must not be found."""
    q = np.resize(np.frombuffer(PLANTED, np.int8), (count, *graph.input.shape))
    x = (q.astype(np.float64) - graph.input.zero_point) * graph.input.scale
    assert (reference.quantize_input(graph, x) == q).all()
    return x


def test_one_trace_from_the_client_over_all_roles(
    cluster: Cluster, graph: Graph, collector: tuple[str, Collector], tracer: object
):
    tls, found = Tls.from_dir(cluster.certs, "client"), collector[1]
    with tracer.start_as_current_span("request") as span:
        number = f"{span.get_span_context().trace_id:032x}"
        with MpcClient(cluster.targets["mpc"], tls=tls, token=TOKEN) as client:
            y = client.infer(planted(graph, 2))
        with HeClient(cluster.targets["he"][0], tls=tls, token=TOKEN) as he:
            assert (he.infer(planted(graph, 2)) == y).all()
    layers = sum(type(node).__name__ in ("Linear", "Conv2d") for node in graph.nodes)
    infer = "secure_quant.v1.ShareInferenceService/Infer"
    wanted = {
        ("application", "request"): 1, ("application", "inference"): 2,
        ("secure-quant-party0", infer): 1, ("secure-quant-party0", "protocol"): 1,
        ("secure-quant-party1", infer): 1, ("secure-quant-party1", "protocol"): 1,
        ("secure-quant-dealer", "deal"): 1,
        ("secure-quant-he", "secure_quant.v1.SecureInferenceService/EvaluateLinear"): layers,
    }  # fmt: skip

    def counted() -> dict[tuple[str, str], int]:
        got = Counter((service, span.name) for service, span in found.of_trace(number))
        return {key: got[key] for key in wanted}

    # They come when each program sends what it has; the dealer's once it has dealt.
    found.until(lambda: counted() == wanted)
    spans = found.of_trace(number)
    by_id = {span.span_id: (service, span) for service, span in spans}
    for service, span in spans:  # one tree: each leads to the application's span
        while span.parent_span_id:
            _, span = by_id[span.parent_span_id]
        assert span.name == "request", service
    named = {(service, span.name): attributes(span) for service, span in spans}
    requests = {named[f"secure-quant-party{i}", infer]["secure_quant.request"] for i in (0, 1)}
    assert len(requests) == 1
    protocol = named["secure-quant-party0", "protocol"]
    assert protocol["secure_quant.rounds"] > 0
    assert protocol["secure_quant.sent_bytes"] > 0
    dealt = named["secure-quant-dealer", "deal"]
    assert dealt["secure_quant.model"] == graph.hash
    assert dealt["secure_quant.items"] >= 2
    assert named["application", "inference"]["secure_quant.samples"] == 2


def test_asyncio_clients_trace_alike(
    cluster: Cluster, graph: Graph, collector: tuple[str, Collector], tracer: object
):
    tls, found = Tls.from_dir(cluster.certs, "client"), collector[1]

    async def ask() -> None:
        async with AsyncMpcClient(cluster.targets["mpc"], tls=tls, token=TOKEN) as client:
            await client.infer(planted(graph, 1))

    with tracer.start_as_current_span("request") as span:
        number = f"{span.get_span_context().trace_id:032x}"
        asyncio.run(ask())
    wanted = {"application", "secure-quant-party0", "secure-quant-party1"}
    found.until(lambda: wanted <= {service for service, _ in found.of_trace(number)})


def test_nothing_that_was_planted_reaches_the_collector(
    cluster: Cluster, graph: Graph, collector: tuple[str, Collector], tracer: object
):
    """Inputs, a seed, a share, a token, names, and what an error says, with everything above."""
    tls, found = Tls.from_dir(cluster.certs, "client"), collector[1]
    size = int(np.prod(graph.input.shape))
    common = {"request_id": secrets.token_bytes(16), "batch": 1, "sharing": SHARING}
    share = np.resize(np.frombuffer(PLANTED, np.uint8), size).tobytes()
    seed = (PLANTED * 5)[:32]
    metadata = [("authorization", f"Bearer {TOKEN}"), ("baggage", "x=planted"),
                ("tracestate", "x=planted"), ("traceparent", "00-planted")]  # fmt: skip
    with tracer.start_as_current_span("application's own") as span:
        number = f"{span.get_span_context().trace_id:032x}"
        with (
            MpcClient(
                cluster.targets["mpc"], tls=tls, token=TOKEN, expected_hash="planted" * 9
            ) as c,
            pytest.raises(SecureQuantError, match="planted"),
        ):
            c.infer(planted(graph, 1))
    calls = []
    for party, half in ((1, {"seed": seed}), (0, {"share": share})):
        channel = sync_channel(cluster.targets["mpc"][party], tls, server_role=f"party{party}")
        request = InferRequest(model_hash=graph.hash, **common, **half)
        stub = ShareInferenceServiceStub(channel)
        calls.append((channel, stub.Infer.future(request, metadata=metadata, timeout=30)))
    for channel, call in calls:
        assert len(call.result().share) == 8 * 7
        channel.close()
    found.until(lambda: len(found.of_trace(number)) >= 1)
    ids = common["request_id"].hex()

    def both_parties() -> bool:
        told = [attributes(span).get("secure_quant.request") for _, span in found.spans]
        return told.count(ids) == 2

    found.until(both_parties)
    everything = b"".join(found.raw)
    assert len(everything) > 2000
    for marker in (PLANTED, PLANTED.hex().encode(), seed.hex()[:20].encode()):
        assert marker not in everything
    allowed = {f"secure_quant.{name}" for name in (
        "model", "request", "samples", "rounds", "sent_bytes", "offline_bytes", "items", "step",
        "bytes_up", "bytes_down",
    )}  # fmt: skip
    for service, span in found.spans:
        assert attributes(span).keys() <= allowed, (service, span.name)
        assert not span.events
        assert span.status.message.replace("_", "").isalpha() or not span.status.message
