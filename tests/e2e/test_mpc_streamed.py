"""A streamed model through real processes: material flows while samples run, within a window."""

import asyncio
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
    lane_workers,
    restart,
    tls,
    wait_until_served,
)
from patience import ample

from secure_quant import Graph, reference
from secure_quant.errors import ServiceError
from secure_quant.mpc.protocol.plan import plan
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.processes import cpu_seconds
from secure_quant_client import AsyncMpcClient, MpcClient, Progress

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


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_long_call_says_how_far_it_is(cluster: Cluster, graph: Graph, face: str) -> None:
    q, words, targets = inputs(graph, 128), list[Progress](), cluster.targets["mpc"]

    async def work() -> Any:
        async with AsyncMpcClient(targets, tls=tls(cluster)) as client:
            return await client.infer_int8(q, progress=words.append)

    if face == "asyncio":
        answer = asyncio.run(work())
    else:
        with MpcClient(targets, tls=tls(cluster)) as client:
            answer = client.infer_int8(q, progress=words.append)
    assert np.array_equal(answer, reference.run_int(graph, q))
    fractions = [word.fraction for word in words]
    assert fractions == sorted(set(fractions))
    assert fractions[-1] == 1
    assert any(0 < each < 1 for each in fractions)
    assert {word.stage for word in words[:-1]} <= {"", *(node.name for node in graph.nodes)}
    assert words[-1].done == words[-1].of > 0


@pytest.mark.parametrize("how", ["task", pytest.param("close", marks=pytest.mark.heavy)])
def test_a_call_that_is_given_up_frees_both_parties(
    cluster: Cluster, graph: Graph, how: str
) -> None:
    """Four calls of 32 samples are under way, and end in the middle of one; what is asked after
    them would wait for them."""
    q = inputs(graph, 128)
    lanes = [pid for party in range(2) for pid in lane_workers(cluster, f"party{party}")]

    def spent() -> list[float]:
        return [cpu_seconds(pid) or 0.0 for pid in lanes]

    async def work() -> None:
        async with AsyncMpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client:
            begun = spent()
            await client.infer_int8(q)
            whole = spent()
            asked = asyncio.ensure_future(client.infer_int8(q))
            while spent() == whole:  # until they run
                await asyncio.sleep(0.01)
            if how == "task":
                asked.cancel()
            else:
                await client.close()
            with pytest.raises((asyncio.CancelledError, ServiceError)):
                await asked
        with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as other:
            answer = await asyncio.to_thread(other.infer_int8, q[:2])
        assert np.array_equal(answer, reference.run_int(graph, q[:2]))
        for before, after, end in zip(begun, whole, spent(), strict=True):
            assert end - after < (after - before) / 2
        assert lanes == [p for i in range(2) for p in lane_workers(cluster, f"party{i}")]

    asyncio.run(work())


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
