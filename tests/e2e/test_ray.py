"""The HE server on Ray Serve: two nodes, our own client, replicas and a node killed under load."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.he_server import inputs, lenet
from e2e.ray_process import RAY, Ray
from patience import ample

from secure_quant import reference
from secure_quant.errors import MalformedMessage, ModelNotFound, SecureQuantError
from secure_quant.transport import InsecurePlaintext, sync_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateLinearRequest
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client import HeClient

CALLERS = 4
GRAPH = lenet()

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not RAY.exists(), reason="Ray is not here: make ray"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    started = Ray(tmp_path_factory.mktemp("ray"), GRAPH, replicas=2)
    try:
        yield started
    finally:
        started.end()


def client(cluster: Ray) -> HeClient:
    return HeClient(cluster.target, tls=InsecurePlaintext(), expected_hash=GRAPH.hash)


def test_our_client_gets_exact_answers(cluster: Ray) -> None:
    q = inputs(GRAPH, 3)
    with client(cluster) as asked:
        assert np.array_equal(asked.infer_int8(q, timeout=ample(60)), reference.run_int(GRAPH, q))
    nodes = {each["node"] for each in cluster.tell("state")}
    assert len(nodes) == 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_hash": "0" * 64}, ModelNotFound), ({"step": 99}, MalformedMessage),
        ({"batch": 0}, MalformedMessage), ({"ciphertexts": b"none"}, MalformedMessage),
    ],
)  # fmt: skip
def test_errors_have_their_names(cluster: Ray, change: dict[str, Any], error: Any) -> None:
    import grpc

    request = EvaluateLinearRequest(
        **({"model_hash": GRAPH.hash, "step": 0, "batch": 1, "ciphertexts": b""} | change)
    )
    with sync_channel(cluster.target, InsecurePlaintext(), server_role="he") as channel:
        with pytest.raises(grpc.RpcError) as found:
            SecureInferenceServiceStub(channel).EvaluateLinear(request, timeout=ample(30))
        assert type(raised(found.value)) is error


def test_replicas_and_a_node_are_killed_under_load(cluster: Ray) -> None:
    questions = [inputs(GRAPH, 1, seed) for seed in range(4)]
    answers = [reference.run_int(GRAPH, q) for q in questions]
    right: list[float] = []
    wrong, failed = [0], Counter[str]()
    stop = threading.Event()

    def ask() -> None:
        turn = 0
        with client(cluster) as asked:
            while not stop.is_set():
                turn = (turn + 1) % len(questions)
                try:
                    found = asked.infer_int8(questions[turn], timeout=ample(30))
                except SecureQuantError as error:
                    failed[type(error).__name__] += 1
                    time.sleep(0.1)
                    continue
                if np.array_equal(found, answers[turn]):
                    right.append(time.monotonic())
                else:
                    wrong[0] += 1

    def until(what: str, there: Any) -> None:
        end = time.monotonic() + ample(60)
        while not there():
            assert time.monotonic() < end, (what, failed)
            time.sleep(0.2)

    callers = [threading.Thread(target=ask) for _ in range(CALLERS)]
    try:
        for caller in callers:
            caller.start()
        until("answers", lambda: len(right) > 12)
        killed = cluster.tell("kill")
        at = time.monotonic()
        until("answers after a kill", lambda: sum(each > at for each in right) > 12)
        until("a replica in its place", lambda: len(
            [r for r in cluster.tell("state") if r["pid"] != killed["pid"]]) == 2)  # fmt: skip
        cluster.tell("node")
        at = time.monotonic()
        until("answers without the node", lambda: sum(each > at for each in right) > 12)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    print(f"{len(right)} right answers, failed {dict(failed)}")
    assert wrong == [0]


def test_load_brings_a_second_replica_and_its_end_takes_it_away(
    cluster: Ray, tmp_path: Path
) -> None:
    """In a cluster of its own; two at once are too much for a small machine."""
    scaling = {
        "max_replicas": 2, "upscale_delay_s": 1, "downscale_delay_s": 3, "metrics_interval_s": 1,
        "look_back_period_s": 3,
    }  # fmt: skip
    cluster.end()
    scaled = Ray(tmp_path, GRAPH, autoscaling=scaling)
    question = inputs(GRAPH, 1)
    answer = reference.run_int(GRAPH, question)
    stop, right, wrong = threading.Event(), [0] * CALLERS, [0] * CALLERS

    def ask(number: int) -> None:
        with client(scaled) as asked:
            while not stop.is_set():
                found = asked.infer_int8(question, timeout=ample(30))
                (right if np.array_equal(found, answer) else wrong)[number] += 1

    def until(count: int) -> int:
        end, before = time.monotonic() + ample(60), sum(right)
        while len(scaled.tell("state")) != count:
            assert time.monotonic() < end, (count, right)
            time.sleep(0.2)
        return sum(right) - before

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(CALLERS)]
    try:
        assert until(1) == 0
        for caller in callers:
            caller.start()
        assert until(2) > 0
        stop.set()
        for caller in callers:
            caller.join()
        assert until(1) == 0
    finally:
        stop.set()
        scaled.end()
    assert wrong == [0] * CALLERS
    assert all(right)
