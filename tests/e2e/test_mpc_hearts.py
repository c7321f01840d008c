"""What hangs is noticed: by its own front, and by the other party."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.mpc_cluster import (
    children,
    inputs,
    lane_workers,
    tls,
    wait_until_served,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from patience import ample

from secure_quant import Graph, reference
from secure_quant.transport import sync_channel
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.health import is_serving
from secure_quant_client import MpcClient

SEED = 21
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def told(folder: Path) -> dict[str, Any]:
    return {"options": {"party1": ("--border", "none")}}


def serving(cluster: Cluster, party: int) -> bool:
    return is_serving(cluster.targets["mpc"][party], f"party{party}", tls(cluster))


@contextmanager
def health(cluster: Cluster, party: int) -> Iterator[Any]:
    """Each change of a party's health."""
    role, target = f"party{party}", cluster.targets["mpc"][party]
    with sync_channel(target, tls(cluster), server_role=role) as channel:
        yield health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=ample(60)
        )


def wait_until(condition: Callable[[], bool], limit: float = 30.0) -> None:
    end = time.monotonic() + ample(limit)
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_right(cluster: Cluster, graph: Graph) -> bool:
    q = inputs(graph, 2, seed=3)
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client:
        return bool(np.array_equal(client.infer_int8(q), reference.run_int(graph, q)))


def loads(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()


def test_borders_may_differ_and_one_is_without_torch(cluster: Cluster, graph: Graph) -> None:
    wait_until_served(cluster)
    assert is_right(cluster, graph)
    assert loads(lane_workers(cluster, "party0")[0], "libtorch")
    for pid in [*lane_workers(cluster, "party1"), *children(cluster.processes["party1"].pid)]:
        assert not loads(pid, "libtorch")


def test_a_template_opens_nothing_and_has_one_thread(cluster: Cluster) -> None:
    for role in ("party0", "party1"):
        (template,) = children(cluster.processes[role].pid)
        assert len(list(Path(f"/proc/{template}/task").iterdir())) == 1
        targets = [os.readlink(each) for each in Path(f"/proc/{template}/fd").iterdir()]  # noqa: PTH115
        assert sum(target.startswith("socket:") for target in targets) == 3  # front, and itself
        # No event loop and no file either: but the logs, which are where errors go.
        assert not [
            each for each in targets if "eventpoll" in each or each.endswith((".sqb", ".key"))
        ]


@pytest.mark.parametrize("role", ["party0", "party1"])
def test_a_stuck_lane_is_noticed_at_both_parties_and_replaced(
    cluster: Cluster, graph: Graph, role: str
) -> None:
    wait_until_served(cluster)
    time.sleep(1.0)  # a beat has been heard
    (stuck,) = lane_workers(cluster, role)
    with ExitStack() as stack:  # neither is unready for long: who asks now and then may miss it
        told = [stack.enter_context(health(cluster, party)) for party in (0, 1)]
        assert [next(each).status for each in told] == [SERVING] * 2
        os.kill(stuck, signal.SIGSTOP)
        assert [next(each).status for each in told] == [NOT_SERVING] * 2
    wait_until_served(cluster)
    assert stuck not in lane_workers(cluster, role)
    assert is_right(cluster, graph)
    assert '"reason": "the worker hangs' in (cluster.logs / f"{role}.log").read_text()


@pytest.mark.parametrize("party", [0, 1])
def test_a_stuck_front_makes_the_other_party_unready(
    cluster: Cluster, graph: Graph, party: int
) -> None:
    wait_until_served(cluster)
    front = cluster.processes[f"party{party}"].pid
    os.kill(front, signal.SIGSTOP)
    try:
        wait_until(lambda: not serving(cluster, 1 - party))
    finally:
        os.kill(front, signal.SIGCONT)
    wait_until_served(cluster)
    assert is_right(cluster, graph)
