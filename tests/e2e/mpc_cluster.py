"""Dealer and two parties as `secure-quant serve` starts them, on one graph."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from patience import ample

from conformance.builder import Net
from secure_quant import Graph
from secure_quant.mpc.protocol.bundle import split
from secure_quant.transport import Tls
from secure_quant.transport.certs import make_all
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.health import is_serving


def small_net(seed: int = 5) -> Graph:
    """One of each: convolution, pool, saturating tables, linear layers."""
    net = Net(seed, (2, 10, 10), zero_point=-3)
    net.conv(4, (3, 3), padding=(1, 1))
    net.requantize(zero_point=-128)
    net.max_pool((2, 2), (2, 2))
    net.flatten()
    net.linear(12)
    net.requantize()
    net.linear(7)
    return net.done(per_channel=True)


def inputs(graph: Graph, batch: int, seed: int = 0) -> np.ndarray:
    shape = (batch, *graph.input.shape)
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def start(
    directory: Path,
    graph: Graph,
    lanes: int = 1,
    *,
    streamed: bool | None = None,
    options: Mapping[str, Sequence[str]] | None = None,
    certs: Path | None = None,
) -> Cluster:
    """A cluster ready to be entered. options: as in Cluster. certs: another one's, or its own."""
    bundles = directory / "bundles"
    if certs is None:
        certs = directory / "certs"
        make_all(certs)
    bundles.mkdir()
    for role, data in split(graph, streamed=streamed).items():
        (bundles / f"{role}.sqb").write_bytes(data)
    return Cluster(certs, directory / "logs", {"mpc": bundles}, lanes=lanes, options=options or {})


def tls(cluster: Cluster, role: str = "client") -> Tls:
    return Tls.from_dir(cluster.certs, role)


def lane_workers(cluster: Cluster, role: str) -> list[int]:
    """Process ids of a party's lanes: children of the template that they are forked from."""
    templates = children(cluster.processes[role].pid)
    return [worker for template in templates for worker in children(template)]


def children(parent: int) -> list[int]:
    """Process ids of a process's children."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def wait_until_served(cluster: Cluster, limit: float = 60.0) -> None:
    """Until both parties say that they can answer an inference."""
    end = time.monotonic() + ample(limit)
    for party, address in enumerate(cluster.targets["mpc"]):
        while not is_serving(address, f"party{party}", tls(cluster)):
            if time.monotonic() > end:
                raise TimeoutError(f"party {party} does not heal")
            time.sleep(0.05)


def restart(cluster: Cluster, role: str) -> None:
    """Start a role again that was killed, with the same arguments."""
    before = cluster.processes[role]
    before.wait()
    before.stdin.close()
    with (cluster.logs / f"{role}.log").open("ab") as log:
        cluster.processes[role] = subprocess.Popen(
            before.args, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
