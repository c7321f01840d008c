"""Engines as ``bench`` and ``demo`` use them: real processes on loopback over mutual TLS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from secure_quant.engines import find
from secure_quant_cli.engines import exact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secure_quant.ir import Graph
    from secure_quant_cli.cluster import Cluster

__all__ = ["Service", "serving", "timed"]

Made = TypeVar("Made")


@dataclass
class Service:
    """The running roles and a client of each engine that was asked for, by its name."""

    graph: Graph
    cluster: Cluster
    clients: dict[str, Any]
    connect: Callable[[str], Any]
    """One more client of an engine; it is closed with the service."""

    def traced(self, engine: str) -> Callable[[NDArray[np.int8]], dict[str, NDArray[np.int64]]]:
        """int8[batch, *input shape] -> the integers that the client sees, by node name."""
        client, output = self.clients[engine], self.graph.output.name
        trace = exact(engine).trace
        if trace is not None:
            return lambda q: dict(trace(client, q))
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
    objective: str | None = None,
    tier: str | None = None,
    dial: Callable[[str], str] = str,
    options: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Service]:
    """Split ``graph``, make certificates, start the roles of ``engines``, exact ones; on
    leaving, every process has ended.

    Bundles and certificates lie in the folder ``work``, which should be a temporary one, and so do
    the log files unless ``logs`` is another folder. ``dial`` and ``options`` as in
    Cluster.
    """
    from secure_quant.transport import Tls
    from secure_quant.transport.certs import make_all
    from secure_quant_cli.cluster import Cluster
    from secure_quant_cli.console import progress
    from secure_quant_cli.processes import bound_to_half
    from secure_quant_cli.split import split_for, write_bundles

    folders = {name: work / name for name in engines}
    with progress("splitting the model into bundles, making certificates"):
        for engine, folder in folders.items():
            write_bundles(split_for(graph, engine, objective, tier), folder)
        make_all(work / "certs")
    cluster = Cluster(
        work / "certs",
        logs or work / "logs",
        folders,
        lanes=lanes,
        workers=workers,
        dial=dial,
        options=options or {},
    )
    own = find(engines[0]).client_half if len(engines) == 1 else None
    titles = (", ".join(role.title for role in find(name).roles) for name in engines)
    tls = Tls.from_dir(work / "certs", "client")
    with bound_to_half(own), ExitStack() as stack:
        with progress(f"starting {' and '.join(titles)}"):
            stack.enter_context(cluster)

        def connect(engine: str) -> Any:
            targets = cluster.targets[engine]
            made = find(engine).connect(targets, tls=tls, expected_hash=graph.hash)
            return stack.enter_context(made)

        yield Service(graph, cluster, {name: connect(name) for name in folders}, connect)


def timed(infer: Callable[[NDArray[np.int8]], Made], q: NDArray[np.int8]) -> tuple[Made, float]:
    """The answer and the milliseconds it took, as the caller sees it."""
    start = time.perf_counter()
    made = infer(q)
    return made, (time.perf_counter() - start) * 1e3
