"""Measure one engine on one model: real processes on loopback, mutual TLS, every answer compared
with the reference.

Models: linear:IN,OUT  mlp (64-128-10)  lenet  resnet20  transformer (16×64)  or a model file.
--json prints one object; a figure that does not apply is null. --against runs a peer library on
the same network right after, on the same machine: CrypTen with its trusted third party, or
TenSEAL's own layers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_quant_cli.split import OBJECTIVES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secure_quant.ir import Graph

__all__ = ["FIGURES", "HELP", "configure", "measure", "run"]

HELP = "latency, throughput, traffic and memory of one engine"

FIGURES = (
    "engine", "model", "batch", "latency_ms_median", "latency_ms_p90", "inferences_per_second",
    "sustained_per_second", "rounds", "online_bytes_per_direction", "offline_bytes_party0",
    "offline_bytes_party1", "bytes_up", "bytes_down", "key_bytes", "peak_memory_bytes",
    "mismatches",
)  # fmt: skip

WARM_UP = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--model", required=True, metavar="MODEL")
    parser.add_argument("--engine", choices=("reference", "mpc", "he"), required=True)
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--runs", type=int, default=30, help="timed inferences")
    parser.add_argument("--seconds", type=float, default=5.0,
                        help="length of the sustained run; 0 leaves it out")  # fmt: skip
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--objective", choices=OBJECTIVES, help="as in split")
    parser.add_argument("--against", choices=("crypten", "tenseal"))
    parser.add_argument("--peer-runs", type=int, default=3, help="timed inferences of the peer")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the logs of the roles")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Print the figures; 1 if an integer differed."""
    from secure_quant.errors import ValueOutOfRange
    from secure_quant_cli.console import print_json
    from secure_quant_cli.models import bench_model

    for name in ("batch", "runs", "lanes", "workers", "peer_runs"):
        if getattr(arguments, name) < 1:
            got = getattr(arguments, name)
            raise ValueOutOfRange(f"--{name.replace('_', '-')}", got=got, expected=">= 1")
    graph = bench_model(arguments.model)
    figures = measure(graph, arguments)
    if arguments.against is not None:
        figures |= _peer(graph, arguments, figures["latency_ms_median"])
    if arguments.json:
        print_json(figures)
    else:
        _show(figures)
    return 0 if figures["mismatches"] == 0 else 1


def measure(graph: Graph, arguments: argparse.Namespace) -> dict[str, Any]:
    """All of FIGURES, and the peak memory role by role."""
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    figures |= {name: getattr(arguments, name) for name in ("engine", "model", "batch")}
    if arguments.engine == "reference":
        return figures | _measure_reference(graph, arguments)
    from secure_quant_cli.engines import serving

    with (
        tempfile.TemporaryDirectory(prefix="secure-quant-") as work,
        serving(
            graph, Path(work), engines=(arguments.engine,), logs=arguments.logs,
            lanes=arguments.lanes, workers=arguments.workers, objective=arguments.objective,
        ) as service,
    ):  # fmt: skip
        client = service.clients[arguments.engine]
        figures |= _measure(graph, client.infer_int8, arguments)
        stats = client.stats
        for name in (
            "rounds", "online_bytes_per_direction", "offline_bytes_party0", "offline_bytes_party1",
            "bytes_up", "bytes_down",
        ):  # fmt: skip
            figures[name] = getattr(stats, name)
        # Under homomorphic encryption the server needs no evaluation key; shares have none.
        figures["key_bytes"] = 0 if arguments.engine == "he" else None
        memory = service.cluster.memory()
    known = [size for size in memory.values() if size is not None]
    figures["peak_memory_bytes"] = max(known, default=None)
    figures["peak_memory_bytes_by_role"] = memory
    return figures


def _measure_reference(graph: Graph, arguments: argparse.Namespace) -> dict[str, Any]:
    from secure_quant import reference
    from secure_quant_cli.cluster import peak_memory

    made = _measure(graph, lambda q: reference.run_int(graph, q), arguments)
    return made | {"peak_memory_bytes": peak_memory(os.getpid())}


def _measure(graph: Graph, infer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from secure_quant import reference
    from secure_quant_cli.comparison import mismatches
    from secure_quant_cli.console import progress
    from secure_quant_cli.engines import timed

    rng = np.random.default_rng(0)
    latencies: list[float] = []
    wrong = 0
    with progress(f"{arguments.runs} timed inferences of {arguments.batch}") as line:
        for turn in range(WARM_UP + arguments.runs):
            q = _inputs(rng, graph, arguments.batch)
            made, took = timed(infer, q)
            wrong += mismatches(reference.run_int(graph, q), made)
            if turn >= WARM_UP:
                latencies.append(took)
                line.note(f"{len(latencies)}/{arguments.runs}")
    median = statistics.median(latencies)
    return {
        "latency_ms_median": median,
        "latency_ms_p90": float(np.percentile(latencies, 90)),
        "inferences_per_second": arguments.batch * 1e3 / median,
        "sustained_per_second": _sustained(graph, infer, arguments),
        "mismatches": wrong,
    }


def _sustained(graph: Graph, infer: Any, arguments: argparse.Namespace) -> float | None:
    """Samples per second without a pause, so that offline work made ahead has run out: only the
    second half of the time counts."""
    import numpy as np

    from secure_quant_cli.console import progress

    batch: int = arguments.batch
    if arguments.seconds <= 0:
        return None
    q = _inputs(np.random.default_rng(1), graph, batch)
    ends: list[float] = []
    with progress(f"sustained for {arguments.seconds:g} s"):
        start = time.perf_counter()
        while not ends or ends[-1] - start < arguments.seconds:
            infer(q)
            ends.append(time.perf_counter())
    late = [end for end in ends if end - start > arguments.seconds / 2]
    if len(late) < 2:
        return batch * len(ends) / (ends[-1] - start)
    return batch * (len(late) - 1) / (late[-1] - late[0])


def _inputs(rng: np.random.Generator, graph: Graph, batch: int) -> NDArray[np.int8]:
    import numpy as np

    return rng.integers(-128, 128, (batch, *graph.input.shape), np.int8)


def _peer(graph: Graph, arguments: argparse.Namespace, ours: float) -> dict[str, Any]:
    from secure_quant.errors import ConfigError
    from secure_quant.ir import save
    from secure_quant_cli.console import progress
    from secure_quant_cli.peers import crypten_stock, tenseal_stock

    if arguments.against == "tenseal" and arguments.batch != 1:
        raise ConfigError("--against tenseal", got=f"--batch {arguments.batch}", expected="1")
    with (
        tempfile.TemporaryDirectory(prefix="secure-quant-") as work,
        progress(f"the same network on stock {arguments.against}"),
    ):
        path = Path(work) / "model.sq"
        save(graph, path)
        if arguments.against == "crypten":
            peer = crypten_stock.run(str(path), arguments.batch, arguments.peer_runs)
        else:
            peer = tenseal_stock.run(str(path), arguments.peer_runs)
    median = statistics.median(peer["latency_ms"])
    return {"peer_latency_ms_median": median, "ratio": median / ours, "peer": peer}


def _show(figures: dict[str, Any]) -> None:
    from secure_quant_cli.console import human_bytes, milliseconds, table

    rows = []
    for name, value in figures.items():
        if value is None or isinstance(value, dict):
            continue
        shown = value
        if "bytes" in name:
            shown = human_bytes(value)
        elif "_ms" in name:
            shown = milliseconds(value)
        elif isinstance(value, float):
            shown = f"{value:.1f}"
        rows.append((name.replace("_", " ").replace(" ms", ""), shown))
    print(table(("figure", "value"), rows))
