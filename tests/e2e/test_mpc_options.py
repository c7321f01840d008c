"""Parties that join requests, link over gRPC, ask for tokens, take small batches: other ways to the
same integers."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_bytes
from typing import Any

import numpy as np
import pytest
from e2e.mpc_cluster import inputs, tls
from patience import ample

from secure_quant import Graph, reference
from secure_quant.errors import Unauthenticated
from secure_quant.transport import sync_channel
from secure_quant.wire import SHARING
from secure_quant.wire.gen.share_inference_pb2 import InferRequest
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceStub
from secure_quant_cli.cluster import Cluster
from secure_quant_client import MpcClient
from secure_quant_server.common import make_token

CLIENTS = 6
TOKEN, LINE = make_token("alice")

SEED = 3


def told(folder: Path) -> dict[str, Any]:
    (folder / "tokens").write_text(LINE + "\n")
    party = ("--link-protocol", "grpc", "--staged", "2", "--tokens", str(folder / "tokens"),
             "--wait-seconds", "1000")  # fmt: skip
    options = {
        "party0": (*party, "--batch-wait-seconds", "0.1"), "party1": (*party, "--batch", "20")
    }  # fmt: skip
    return {"options": options}


def ask(cluster: Cluster, graph: Graph, seed: int) -> bool:
    """Five inferences of one client, all of them right."""
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster), token=TOKEN) as client:
        for turn in range(5):
            q = inputs(graph, 1 + (seed + turn) % 3, seed=100 * seed + turn)
            if not np.array_equal(client.infer_int8(q), reference.run_int(graph, q)):
                return False
    return True


def test_requests_of_several_clients_join_and_each_gets_its_own_answer(
    cluster: Cluster, graph: Graph
) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        assert all(pool.map(lambda seed: ask(cluster, graph, seed), range(CLIENTS)))


def test_a_client_that_sends_one_share_spoils_nobodys_batch(cluster: Cluster, graph: Graph) -> None:
    channel = sync_channel(cluster.targets["mpc"][0], tls(cluster), server_role="party0")
    request = InferRequest(
        model_hash=graph.hash, request_id=token_bytes(16), batch=1,
        share=bytes(int(np.prod(graph.input.shape))), sharing=SHARING,
    )  # fmt: skip
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    with channel, ThreadPoolExecutor(CLIENTS) as pool:
        infer = ShareInferenceServiceStub(channel).Infer
        half = infer.future(request, timeout=ample(60), metadata=metadata)
        assert all(pool.map(lambda seed: ask(cluster, graph, seed), range(CLIENTS)))
        assert not half.done()  # it still waits for its other share, alone
        half.cancel()


def test_without_a_token_nobody_is_served(cluster: Cluster, graph: Graph) -> None:
    with (
        MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client,
        pytest.raises(Unauthenticated),
    ):
        client.infer_int8(inputs(graph, 1))


def test_a_client_sends_no_more_at_once_than_the_parties_say_they_take(
    cluster: Cluster, graph: Graph
) -> None:
    q = inputs(graph, 45)
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster), token=TOKEN) as client:
        y, stats = client.infer_int8_with_stats(q)
        _, one = client.infer_int8_with_stats(q[:1])
    assert np.array_equal(y, reference.run_int(graph, q))
    assert stats.rounds == 3 * one.rounds  # 20 + 20 + 5
