"""A certified client that misbehaves costs itself, and nobody else."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from secrets import token_bytes
from typing import Any

import grpc
import numpy as np
from e2e.mpc_cluster import inputs, tls
from patience import ample

from secure_quant import Graph, reference
from secure_quant.transport import sync_channel
from secure_quant.wire import SHARING
from secure_quant.wire.gen.share_inference_pb2 import InferRequest
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceStub
from secure_quant_cli.cluster import Cluster
from secure_quant_client import MpcClient
from secure_quant_server.common import make_token

TOKENS = {name: make_token(name) for name in ("alice", "eve")}

SEED = 13


def told(folder: Path) -> dict[str, Any]:
    (folder / "tokens").write_text("".join(f"{line}\n" for _, line in TOKENS.values()))
    tokens = ("--tokens", str(folder / "tokens"))
    return {"options": {"party0": tokens, "party1": tokens}}


class Raw:
    """Calls of both parties as no honest client makes them."""

    def __init__(self, cluster: Cluster, graph: Graph, stack: ExitStack) -> None:
        self._graph, self._stubs = graph, []
        for party, address in enumerate(cluster.targets["mpc"]):
            channel = sync_channel(address, tls(cluster), server_role=f"party{party}")
            self._stubs.append(ShareInferenceServiceStub(stack.enter_context(channel)))

    def send(self, party: int, request_id: bytes, who: str, timeout: float):
        request = InferRequest(
            model_hash=self._graph.hash, request_id=request_id, batch=1, seed=bytes(32),
            sharing=SHARING,
        )  # fmt: skip
        metadata = (("authorization", f"Bearer {TOKENS[who][0]}"),)
        return self._stubs[party].Infer.future(request, timeout=timeout, metadata=metadata)


def sessions_ended(cluster: Cluster) -> int:
    logs = [(cluster.logs / f"party{party}.log").read_text() for party in (0, 1)]
    return sum(log.count('"session ended"') + log.count('"session failed"') for log in logs)


def test_short_deadlines_end_nobodys_session(cluster: Cluster, graph: Graph) -> None:
    """Party 0's half lives a second, party 1's a few milliseconds: it is pushed, and retracted
    before or while a job looks for it."""
    before, q = sessions_ended(cluster), inputs(graph, 2, seed=1)
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        raw = Raw(cluster, graph, stack)
        random = np.random.default_rng(7)

        def attack(seconds: float) -> bool:
            """Whether it was more than a refusal."""
            request_id = token_bytes(16)
            calls = [raw.send(0, request_id, "eve", 1.0), raw.send(1, request_id, "eve", seconds)]
            ends = {error.code() for call in calls if (error := call.exception())}
            return not ends or grpc.StatusCode.DEADLINE_EXCEEDED in ends

        attacks = [pool.submit(attack, float(random.uniform(0.002, 0.05))) for _ in range(150)]
        client = stack.enter_context(
            MpcClient(cluster.targets["mpc"], tls=tls(cluster), token=TOKENS["alice"][0])
        )
        while not all(each.done() for each in attacks):
            assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))
        assert sum(each.result() for each in attacks) > 75
    assert sessions_ended(cluster) == before


def test_a_half_of_another_caller_is_not_joined(cluster: Cluster, graph: Graph) -> None:
    with ExitStack() as stack:
        raw, request_id = Raw(cluster, graph, stack), token_bytes(16)
        theirs = raw.send(1, request_id, "eve", ample(5.0))
        mine = raw.send(0, request_id, "alice", ample(5.0))
        error = mine.exception()
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "another caller" in error.details()
        theirs.cancel()
        both = token_bytes(16)
        calls = [raw.send(party, both, "alice", ample(5.0)) for party in (0, 1)]
        assert [len(call.result().share) for call in calls] == [8 * 7, 8 * 7]
