"""Any role may die at any moment: requests fail quickly with a name, answers stay right, and the
lanes heal by themselves."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from e2e.mpc_cluster import (
    children,
    inputs,
    kill,
    lane_workers,
    restart,
    tls,
    wait_until_served,
)
from patience import ample

from secure_quant import Graph, reference
from secure_quant.errors import ServiceError
from secure_quant_cli.cluster import Cluster
from secure_quant_client import MpcClient

DEADLINE_S = 5.0

SEED = 8


def keep_asking(cluster: Cluster, graph: Graph, until: float) -> tuple[int, list[float], set[str]]:
    """Inferences until a time: right answers, seconds of each failure, names of the errors. A wrong
    answer is an error of the test."""
    right, failed, names = 0, [], set()
    q = inputs(graph, 1, seed=int(until * 1000) % 97)
    expected = reference.run_int(graph, q)
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client:
        while time.monotonic() < until:
            begun = time.monotonic()
            try:
                answer = client.infer_int8(q, timeout=ample(DEADLINE_S))
            except ServiceError as error:
                failed.append(time.monotonic() - begun)
                names.add(type(error).__name__)
                time.sleep(0.05)
            else:
                assert np.array_equal(answer, expected)
                right += 1
    return right, failed, names


def hit(cluster: Cluster, what: str) -> None:
    if what.startswith("lane of "):
        kill(lane_workers(cluster, what.removeprefix("lane of "))[0])
    else:
        orphans = lane_workers(cluster, what) + children(cluster.processes[what].pid)
        kill(cluster.processes[what].pid)
        end = time.monotonic() + ample(5)
        while any(_alive(pid) for pid in orphans):
            assert time.monotonic() < end, "workers must end with their front"
            time.sleep(0.02)
        restart(cluster, what)


@pytest.mark.parametrize("what", ["lane of party0", "lane of party1", "dealer", "party1", "party0"])
def test_heals_after_a_kill(cluster: Cluster, graph: Graph, what: str) -> None:
    wait_until_served(cluster)
    with ThreadPoolExecutor(2) as pool:
        asking = [
            pool.submit(keep_asking, cluster, graph, time.monotonic() + 2.0) for _ in range(2)
        ]
        time.sleep(0.7)
        hit(cluster, what)
        for each in asking:
            _, failed, names = each.result()
            # Quickly: nobody waits for a deadline.
            assert max(failed, default=0.0) < ample(0.4 * DEADLINE_S), (failed, names)
            assert names <= {"PeerUnavailable", "InternalError", "MaterialExhausted"}
    wait_until_served(cluster)
    end, right = time.monotonic() + ample(10), 0
    while not right:
        assert time.monotonic() < end, "no answer"
        right, _, _ = keep_asking(cluster, graph, time.monotonic() + 0.7)


def test_stops_within_its_grace(cluster: Cluster) -> None:
    wait_until_served(cluster)
    begun = time.monotonic()
    cluster.stop()
    assert time.monotonic() - begun < ample(9)
    assert all(process.returncode == 0 for process in cluster.processes.values())


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
