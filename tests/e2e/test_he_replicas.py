"""Two replicas of a homomorphic-encryption server behind one name, one killed under load and
started again: no wrong answer, and none that fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from e2e.he_server import HeServerProcess, inputs, lenet
from patience import ample

from secure_quant import reference
from secure_quant_client import HeClient

CALLERS = 3


@pytest.mark.heavy
def test_one_replica_is_killed_under_load(tmp_path: Path) -> None:
    graph = lenet()
    questions = [inputs(graph, 1, seed) for seed in range(4)]
    answers = [reference.run_int(graph, q) for q in questions]
    right: list[float] = []
    wrong: list[int] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def ask(client: HeClient) -> None:
        turn = 0
        while not stop.is_set():
            turn = (turn + 1) % len(questions)
            try:
                found = client.infer_int8(questions[turn], timeout=ample(30))
            except Exception as error:  # noqa: BLE001  each is counted
                failed.append(error)
                continue
            (right if np.array_equal(found, answers[turn]) else wrong).append(time.monotonic())

    def until(what: str, there: object) -> None:
        end = time.monotonic() + ample(30)
        while not there():  # type: ignore[operator]
            assert time.monotonic() < end, (what, failed)
            time.sleep(0.05)

    with HeServerProcess(tmp_path, graph) as stays:
        first = HeServerProcess(tmp_path, graph)
        with first:
            name = f"ipv4:{first.target},{stays.target}"
            with HeClient(name, tls=stays.tls(), expected_hash=graph.hash) as client:
                callers = [threading.Thread(target=ask, args=(client,)) for _ in range(CALLERS)]
                try:
                    for caller in callers:
                        caller.start()
                    until("answers", lambda: len(right) > 6)
                    first.process.kill()
                    killed = time.monotonic()
                    until("answers of the other", lambda: sum(at > killed for at in right) > 9)
                    port = int(first.target.rpartition(":")[2])
                    with HeServerProcess(tmp_path, graph, port=port):
                        back = time.monotonic()
                        until("answers of both", lambda: sum(at > back for at in right) > 9)
                        stays.process.kill()
                        alone = time.monotonic()
                        until("answers of the first", lambda: sum(at > alone for at in right) > 6)
                        stop.set()
                        for caller in callers:
                            caller.join()
                finally:
                    stop.set()
                    for caller in callers:
                        caller.join()
    assert (wrong, failed) == ([], [])
    print(f"{len(right)} right answers, two kills")
