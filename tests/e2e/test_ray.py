"""The HE server on Ray Serve: two nodes, our own client, replicas and a node killed under load."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.he_server import inputs, lenet
from patience import ample

from secure_quant import reference
from secure_quant.errors import MalformedMessage, ModelNotFound, SecureQuantError
from secure_quant.he.bundle import split
from secure_quant.transport import InsecurePlaintext, sync_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateLinearRequest
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_cli.cluster import free_ports
from secure_quant_client import HeClient

ROOT = Path(__file__).parents[2]
RAY = ROOT / ".ray" / "bin" / "python"
START_S, CALLERS = 120.0, 4
GRAPH = lenet()

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not RAY.exists(), reason="Ray is not here: make ray"),
]


class Ray:
    """The cluster's process, and how to tell it something."""

    def __init__(self, folder: Path, replicas: int) -> None:
        (folder / "server.sqb").write_bytes(split(GRAPH)["server"])
        (port,) = free_ports(1)
        self.target = f"127.0.0.1:{port}"
        script = ROOT / "tests" / "e2e" / "ray_cluster.py"
        command = [RAY, script, folder / "server.sqb", str(port), str(replicas)]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "deploy" / "ray"), "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0",
        }  # fmt: skip
        self._log = (folder / "ray.log").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self._said("ready", START_S)

    def tell(self, command: str) -> Any:
        """Its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        while not (line := self._line()).startswith(">"):
            print(line)
        return json.loads(line[1:])

    def end(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("end\n")
            self.process.stdin.flush()
            self.process.wait(ample(60))
        finally:
            self.process.kill()
            self.process.communicate()
            self._log.close()

    def _said(self, word: str, seconds: float) -> None:
        timer = threading.Timer(ample(seconds), self.process.kill)
        timer.start()
        try:
            while (line := self._line().strip()) != word:
                print(line)
        finally:
            timer.cancel()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._log.seek(0)
            pytest.fail(f"Ray ended: {self._log.read()[-3000:]}")
        return line


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    started = Ray(tmp_path_factory.mktemp("ray"), replicas=2)
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
