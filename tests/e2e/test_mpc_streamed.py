"""A streamed model through real processes: material flows while samples run, within a window."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.mpc_cluster import (
    inputs,
    kill,
    restart,
    tls,
    wait_until_served,
)
from patience import ample

from secure_quant import Graph, reference
from secure_quant.errors import ServiceError
from secure_quant.mpc.protocol.plan import plan
from secure_quant_cli.cluster import Cluster
from secure_quant_client import MpcClient

SEED = 11


def told(folder: Path) -> dict[str, Any]:
    return {"streamed": True}


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_equals_the_reference_at_the_promised_cost(
    cluster: Cluster, graph: Graph, batch: int
) -> None:
    q = inputs(graph, batch, seed=batch)
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client:
        answer, stats = client.infer_int8_with_stats(q)
        assert np.array_equal(answer, reference.run_int(graph, q))
        cost = plan(graph, streamed=True).cost(batch)
    assert (stats.samples, stats.rounds) == (batch, cost.rounds)
    assert stats.online_bytes_per_direction == cost.online_bytes_per_direction
    assert stats.offline_bytes_party1 == cost.offline_bytes_party1


def test_concurrent_clients_take_turns(cluster: Cluster, graph: Graph) -> None:
    def one(number: int) -> bool:
        q = inputs(graph, 1 + number % 3, seed=number)
        with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as own:
            answers = [own.infer_int8(q) for _ in range(3)]
        return all(np.array_equal(each, reference.run_int(graph, q)) for each in answers)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(6)))


def test_heals_after_the_dealer_died_in_the_middle(cluster: Cluster, graph: Graph) -> None:
    q = inputs(graph, 40)
    with (
        MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(client.infer_int8, q, timeout=ample(10))
        time.sleep(0.1)
        kill(cluster.processes["dealer"].pid)
        with suppress(ServiceError):  # it died before the last gate was sent, most likely
            assert np.array_equal(running.result(), reference.run_int(graph, q))
        restart(cluster, "dealer")
        time.sleep(0.3)
        wait_until_served(cluster)
        assert np.array_equal(client.infer_int8(q[:2]), reference.run_int(graph, q[:2]))
