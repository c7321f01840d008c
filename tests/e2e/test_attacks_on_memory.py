"""Messages that are too long, or from who may not send any, cost their sender and nobody else.

The attack: 24 messages of 60 MiB at once, to every role that serves a LeNet, from a client and from
a role that may not call there.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from e2e.mpc_cluster import inputs, tls
from patience import ample

from conformance.builder import Net
from secure_quant import Graph, reference
from secure_quant.he.bundle import split as split_he
from secure_quant.mpc.protocol.bundle import split as split_mpc
from secure_quant.transport import Limits, aio_channel
from secure_quant.transport.certs import make_all
from secure_quant.wire import raised
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.processes import descendants
from secure_quant_client import HeClient, MpcClient

MESSAGES, SIZE = 24, 60 * 2**20
METHODS = {
    "party0": "/secure_quant.v1.ShareInferenceService/Infer",
    "party1": "/secure_quant.v1.ShareInferenceService/Infer",
    "dealer": "/secure_quant.v1.DealerService/Deal",
    "he": "/secure_quant.v1.SecureInferenceService/EvaluateLinear",
}


def lenet() -> Graph:
    """The shape of LeNet-5, with random weights."""
    net = Net(6, (1, 28, 28), zero_point=-3)
    net.conv(6, (5, 5), padding=(2, 2))
    net.requantize(zero_point=-128)
    net.max_pool((2, 2), (2, 2))
    net.conv(16, (5, 5))
    net.requantize(zero_point=-128)
    net.max_pool((2, 2), (2, 2))
    net.flatten()
    net.linear(120)
    net.requantize()
    net.linear(84)
    net.requantize()
    net.linear(10)
    return net.done(per_channel=True)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return lenet()


@pytest.fixture(scope="module")
def cluster(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    base = tmp_path_factory.mktemp("attacked")
    make_all(base / "certs")
    for engine, split in (("mpc", split_mpc), ("he", split_he)):
        (base / engine).mkdir()
        for role, data in split(graph).items():
            (base / engine / f"{role}.sqb").write_bytes(data)
    # A stock that is soon full: what the dealer holds at rest is then known.
    options = {"dealer": ["--stock-bytes", str(16 * 2**20)]}
    with Cluster(
        base / "certs", base / "logs", {"mpc": base / "mpc", "he": base / "he"}, options=options
    ) as started:
        yield started


def resident(cluster: Cluster) -> dict[str, int]:
    """Role -> resident bytes now, workers included."""
    found = {}
    for role, process in cluster.processes.items():
        pages = 0
        for pid in (process.pid, *descendants(process.pid)):
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:  # it ended just now
                continue
        found[role] = pages * 4096
    return found


def front(cluster: Cluster, role: str) -> int:
    """Resident bytes of the process that listens, alone."""
    statm = Path(f"/proc/{cluster.processes[role].pid}/statm").read_text()
    return int(statm.split()[1]) * 4096


def at_rest(cluster: Cluster) -> dict[str, int]:
    """Once nothing grows any more."""
    before, end = resident(cluster), time.monotonic() + ample(60)
    while time.monotonic() < end:
        time.sleep(2)
        now = resident(cluster)
        if all(now[role] < 1.02 * before[role] for role in now):
            return now
        before = now
    raise AssertionError("memory at rest does not settle")


def address(cluster: Cluster, role: str) -> str:
    command = cluster.processes[role].args
    return command[command.index("--listen") + 1]


async def attack(cluster: Cluster, role: str, caller: str) -> Counter[str]:
    """How many messages were answered with which error."""
    limits = Limits(message_bytes=2**30)
    body, security = bytes(SIZE), tls(cluster, caller)
    async with aio_channel(
        address(cluster, role), security, server_role=role, limits=limits
    ) as channel:
        call = channel.unary_unary(METHODS[role])
        answers = await asyncio.gather(
            *(call(body, timeout=ample(60)) for _ in range(MESSAGES)), return_exceptions=True
        )
    return Counter(
        type(raised(each)).__name__ if isinstance(each, grpc.RpcError) else "answered"
        for each in answers
    )


class Watch:
    """Largest resident bytes of each role while it is open."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._over = cluster, threading.Event()
        self.peak = resident(cluster)
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            for role, size in resident(self._cluster).items():
                self.peak[role] = max(self.peak[role], size)


@pytest.mark.parametrize("caller", ["client", "he", "party0"])
def test_long_messages_cost_a_role_less_than_it_holds_at_rest(
    cluster: Cluster, graph: Graph, caller: str
) -> None:
    q = inputs(graph, 2)
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client:
        client.infer_int8(q)
    rest = at_rest(cluster)
    for role in METHODS:
        alone = front(cluster, role)  # pages that workers share with it are counted in it once
        with Watch(cluster) as watch:
            said = asyncio.run(attack(cluster, role, caller))
        assert set(said) <= {"MessageTooLarge", "PermissionDenied", "Overloaded"}, (role, said)
        grown = watch.peak[role] - rest[role]
        assert grown < alone, (role, grown, alone, rest[role])
    # Whoever keeps to the rules is served, and right.
    expected = reference.run_int(graph, q)
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client:
        np.testing.assert_array_equal(client.infer_int8(q), expected)
    with HeClient(cluster.targets["he"][0], tls=tls(cluster), stock=0) as client:
        np.testing.assert_array_equal(client.infer_int8(q), expected)
