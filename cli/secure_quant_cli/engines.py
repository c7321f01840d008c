"""Engines as ``bench`` and ``demo`` use them: real processes on loopback over mutual TLS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secure_quant.ir import Graph
    from secure_quant_cli.cluster import Cluster
    from secure_quant_cli.split import Objective, Tier
    from secure_quant_client import InferenceStats

__all__ = ["Service", "bytes_sent", "serving", "timed"]

ROLES = {"mpc": "dealer, party 0, party 1", "he": "HE server"}

Made = TypeVar("Made")


@dataclass
class Service:
    """The running roles and a client of each engine that was asked for: ``mpc``, ``he``."""

    graph: Graph
    cluster: Cluster
    clients: dict[str, Any]
    connect: Callable[[str], Any]
    """One more client of an engine; it is closed with the service."""

    def traced(self, engine: str) -> Callable[[NDArray[np.int8]], dict[str, NDArray[np.int64]]]:
        """int8[batch, *input shape] -> the integers that the client sees, by node name."""
        client, output = self.clients[engine], self.graph.output.name
        if engine == "he":
            return lambda q: dict(client.trace_int8(q))
        return lambda q: {output: client.infer_int8(q)}


@contextmanager
def serving(
    graph: Graph,
    work: Path,
    *,
    engines: Sequence[str],
    logs: Path | None = None,
    lanes: int = 1,
    workers: int = 1,
    objective: Objective | None = None,
    tier: Tier = "T1",
    dial: Callable[[str], str] = str,
) -> Iterator[Service]:
    """Split ``graph``, make certificates, start the roles of ``engines`` (mpc, he); on leaving,
    every process has ended.

    Bundles and certificates lie in the folder ``work``, which should be a temporary one, and so do
    the log files unless ``logs`` is another folder. ``dial`` as in Cluster.
    """
    from secure_quant.transport import Tls
    from secure_quant.transport.certs import make_all
    from secure_quant_cli.cluster import Cluster
    from secure_quant_cli.console import progress
    from secure_quant_cli.split import split_for, write_bundles

    folders = {name: work / name for name in engines}
    with progress("splitting the model into bundles, making certificates"):
        for engine, folder in folders.items():
            write_bundles(split_for(graph, engine, objective, tier), folder)
        make_all(work / "certs")
    cluster = Cluster(
        work / "certs", logs or work / "logs",
        mpc=folders.get("mpc"), he=folders.get("he"), lanes=lanes, workers=workers,
        dial=dial,
    )  # fmt: skip
    with progress(f"starting {' and '.join(ROLES[name] for name in engines)}"):
        cluster.start()
    tls = Tls.from_dir(work / "certs", "client")
    with cluster, ExitStack() as stack:

        def connect(engine: str) -> Any:
            return stack.enter_context(_client(cluster, engine, tls, graph))

        yield Service(graph, cluster, {name: connect(name) for name in folders}, connect)


def bytes_sent(engine: str, stats: InferenceStats) -> dict[str, dict[str, int]]:
    """Role -> bytes it sent for an inference, online and made ahead; payload, no framing."""
    if engine == "he":
        return {
            "client": {"online": stats.bytes_up, "offline": 0},
            "server": {"online": stats.bytes_down, "offline": 0},
        }
    link = stats.online_bytes_per_direction or 0
    answer = stats.bytes_down // 2
    return {
        "client": {"online": stats.bytes_up, "offline": 0},
        "party 0": {"online": link + answer, "offline": 0},
        "party 1": {"online": link + answer, "offline": 0},
        "dealer": {
            "online": 0,
            "offline": (stats.offline_bytes_party0 or 0) + (stats.offline_bytes_party1 or 0),
        },
    }


def timed(infer: Callable[[NDArray[np.int8]], Made], q: NDArray[np.int8]) -> tuple[Made, float]:
    """The answer and the milliseconds it took, as the caller sees it."""
    start = time.perf_counter()
    made = infer(q)
    return made, (time.perf_counter() - start) * 1e3


def _client(cluster: Cluster, engine: str, tls: Any, graph: Graph) -> Any:
    if engine == "mpc":
        from secure_quant_client import MpcClient

        return MpcClient(cluster.parties, tls=tls, expected_hash=graph.hash)
    from secure_quant_client import HeClient

    return HeClient(str(cluster.he_server), tls=tls, expected_hash=graph.hash)
