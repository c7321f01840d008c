"""Measure one engine on one model: real processes on loopback, mutual TLS, every answer compared
with the reference.

Models: linear:IN,OUT  mlp (64-128-10)  lenet  resnet20  transformer (16×64)  or a model file.

Online latency: one call at a time, each after a rest in which the roles (and this process) do all
that they make ahead of demand: dealt material and its expansion, keys, encryptions of zero.
In a row: one client, call after call, the work made ahead beside them.
Sustained: --clients in flight without a pause for --seconds, of which the second half counts;
offline work runs beside them and counts. CPU time is of that half, per sample and role.

--json prints one object; a figure that does not apply is null. --against runs a peer library on
the same network right after, on the same machine: CrypTen with its trusted third party, or
TenSEAL's own layers. Its calls follow each other, so the ratio is its median over our median in a
row; the online ratio is to our online latency. Our parties are bound to half of the cores each, as
they would have hosts of their own, and so are one host and its client; CrypTen's run as it starts
them itself, and once more bound in the same way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_quant_cli.engines import exact, exact_names
from secure_quant_cli.split import choices

if TYPE_CHECKING:
    from secure_quant.ir import Graph
    from secure_quant_cli.load import Rest
    from secure_quant_cli.service import Service

__all__ = ["FIGURES", "HELP", "configure", "measure", "run"]

HELP = "latency, throughput, traffic, CPU time and memory of one engine"

FIGURES = (
    "engine", "model", "batch", "latency_ms_median", "latency_ms_p90", "rest_ms_median",
    "inferences_per_second", "in_a_row_ms_median", "in_a_row_ms_p90", "clients",
    "sustained_per_second", "sustained_latency_ms_median",
    "sustained_latency_ms_p90", "rounds", "online_bytes_per_direction", "offline_bytes_party0",
    "offline_bytes_party1", "bytes_up", "bytes_down", "offline_bytes_up", "offline_bytes_down",
    "flights", "offline_seconds", "key_bytes", "cpu_ms_per_inference",
    "offline_cpu_ms_per_inference", "peak_memory_bytes", "peak_memory_bytes_by_role",
    "mismatches",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--model", required=True, metavar="MODEL")
    parser.add_argument("--engine", choices=("reference", *exact_names()), required=True)
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--runs", type=int, default=30, help="timed inferences")
    parser.add_argument("--seconds", type=float, default=5.0,
                        help="length of the sustained run; 0 leaves it out")  # fmt: skip
    parser.add_argument("--clients", type=int, metavar="N",
                        help="in flight in the sustained run")  # fmt: skip
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--objective", choices=choices("objectives"), help="as in split")
    parser.add_argument("--tier", choices=choices("tiers"), help="as in split")
    parser.add_argument("--against", choices=("crypten", "tenseal"))
    parser.add_argument("--peer-runs", type=int, default=3, help="timed inferences of the peer")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the logs of the roles")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Print the figures; 1 if an integer differed."""
    from secure_quant_cli.console import print_json
    from secure_quant_cli.models import bench_model

    _check(arguments)
    graph = bench_model(arguments.model)
    if arguments.against is not None:
        from secure_quant_cli.peers.layers import layers

        # Refuses now what the peer could not run.
        list(layers(graph, chain=arguments.against == "tenseal"))
    figures = measure(graph, arguments)
    if arguments.against is not None:
        figures |= _peer(graph, arguments, figures)
    if arguments.json:
        print_json(figures)
    else:
        _show(figures)
    return 0 if figures["mismatches"] == 0 else 1


def _check(arguments: argparse.Namespace) -> None:
    """Raises ValueOutOfRange, ConfigError; fills in --clients."""
    from secure_quant.errors import ConfigError, ValueOutOfRange
    from secure_quant_cli.checks import counts
    from secure_quant_cli.split import check_choices

    if arguments.clients is None:
        witness = arguments.engine == "reference"
        arguments.clients = 1 if witness else exact(arguments.engine).in_flight
    counts(arguments, "batch", "runs", "clients", "lanes", "workers", "peer_runs")
    if not 0 <= arguments.seconds < float("inf"):
        raise ValueOutOfRange("--seconds", got=arguments.seconds, expected=">= 0")
    if arguments.engine != "reference":
        check_choices(arguments, "objective", "tier")
    elif arguments.tier is not None:
        raise ConfigError("--tier", got="--engine reference", expected="an engine that has tiers")
    if arguments.against == "tenseal" and arguments.batch != 1:
        raise ConfigError("--against tenseal", got=f"--batch {arguments.batch}", expected="1")


def measure(graph: Graph, arguments: argparse.Namespace) -> dict[str, Any]:
    """All of FIGURES."""
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    figures |= {name: getattr(arguments, name) for name in ("engine", "model", "batch")}
    if arguments.engine == "reference":
        return figures | _measure_reference(graph, arguments)
    from secure_quant_cli.service import serving

    with (
        tempfile.TemporaryDirectory(prefix="secure-quant-") as work,
        serving(
            graph, Path(work), engines=(arguments.engine,), logs=arguments.logs,
            lanes=arguments.lanes, workers=arguments.workers, objective=arguments.objective,
            tier=arguments.tier,
        ) as service,
    ):  # fmt: skip
        figures |= _measure(graph, service, arguments)
        memory = service.cluster.memory()
    measure_offline = exact(arguments.engine).offline_cpu
    if measure_offline is not None:
        figures["offline_cpu_ms_per_inference"] = _offline(graph, arguments, measure_offline)
    known = [size for size in memory.values() if size is not None]
    figures["peak_memory_bytes"] = max(known, default=None)
    figures["peak_memory_bytes_by_role"] = memory
    return figures


def _measure(graph: Graph, service: Service, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of a service that runs."""
    import numpy as np

    from secure_quant_cli.load import Rest

    engine: str = arguments.engine
    client = service.clients[engine]

    def cpu() -> dict[str, float]:
        return {"client": time.process_time()} | service.cluster.cpu()

    def ahead() -> dict[str, float]:
        # Of this process, what it makes in the background: the watching itself is not counted.
        return cpu() | {"client": time.process_time() - time.thread_time()}

    prepare = getattr(client, "prepare", None)
    made = prepare and partial(prepare, arguments.batch)
    figures = _online(graph, client.infer_int8, arguments, Rest(ahead, made))
    row = _online(graph, client.infer_int8, arguments, rest=None)
    figures |= {f"in_a_row_ms_{name}": row[f"latency_ms_{name}"] for name in ("median", "p90")}
    figures["mismatches"] += row["mismatches"]
    zeros = np.zeros((arguments.batch, *graph.input.shape), np.int8)
    stats = client.infer_int8_with_stats(zeros).stats
    for name in (
        "rounds", "online_bytes_per_direction", "offline_bytes_party0", "offline_bytes_party1",
        "bytes_up", "bytes_down", "offline_bytes_up", "offline_bytes_down", "flights",
        "offline_seconds",
    ):  # fmt: skip
        figures[name] = getattr(stats, name)
    figures["key_bytes"] = exact(engine).key_bytes
    more = [service.connect(engine) for _ in range(arguments.clients - 1)]
    clients = [each.infer_int8 for each in (client, *more)]
    return _sustained(graph, clients, arguments, cpu, figures)


def _measure_reference(graph: Graph, arguments: argparse.Namespace) -> dict[str, Any]:
    from secure_quant import reference
    from secure_quant_cli.processes import peak_memory

    def infer(q: Any) -> Any:
        return reference.run_int(graph, q)

    def cpu() -> dict[str, float]:
        return {"client": time.process_time()}

    figures = _online(graph, infer, arguments, rest=None)
    clients = [infer] * arguments.clients
    figures = _sustained(graph, clients, arguments, cpu, figures)
    return figures | {"peak_memory_bytes": peak_memory(os.getpid())}


def _online(
    graph: Graph, infer: Any, arguments: argparse.Namespace, rest: Rest | None
) -> dict[str, Any]:
    from secure_quant_cli.console import progress
    from secure_quant_cli.load import online

    with progress(f"{arguments.runs} timed inferences of {arguments.batch}") as line:
        return online(
            graph, infer, batch=arguments.batch, runs=arguments.runs,
            rest=rest, line=line,
        ).figures(arguments.batch)  # fmt: skip


def _sustained(
    graph: Graph, clients: list[Any], arguments: argparse.Namespace, cpu: Any,
    figures: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """``figures`` and those of the sustained run, if one is asked for."""
    from secure_quant_cli.console import progress
    from secure_quant_cli.load import sustained

    seconds: float = arguments.seconds
    if not seconds:
        return figures
    with progress(f"sustained for {seconds:g} s, {len(clients)} in flight"):
        made = sustained(graph, clients, batch=arguments.batch, seconds=seconds, cpu=cpu)
    wrong = figures["mismatches"] + made.mismatches
    more = {"clients": len(clients), "mismatches": wrong}
    return figures | made.figures(arguments.batch) | more


def _offline(
    graph: Graph,
    arguments: argparse.Namespace,
    measure: Callable[[Mapping[str, bytes], int], dict[str, float]],
) -> dict[str, float]:
    from secure_quant_cli.console import progress
    from secure_quant_cli.split import split_for

    with progress("offline work alone, in this process"):
        bundles = split_for(graph, arguments.engine, arguments.objective)
        spent = measure(bundles, arguments.batch)
    return {name: 1e3 * seconds for name, seconds in spent.items()}


def _peer(graph: Graph, arguments: argparse.Namespace, ours: dict[str, Any]) -> dict[str, Any]:
    from secure_quant.ir import save
    from secure_quant_cli.console import progress
    from secure_quant_cli.peers import crypten_plain, tenseal_plain

    with (
        tempfile.TemporaryDirectory(prefix="secure-quant-") as work,
        progress(f"the same network on stock {arguments.against}"),
    ):
        path = Path(work) / "model.sq"
        save(graph, path)
        if arguments.against == "crypten":
            counts = (arguments.batch, arguments.peer_runs)
            peer = crypten_plain.run(str(path), *counts)
            bound = crypten_plain.run(str(path), *counts, bound=True)
        else:
            peer, bound = tenseal_plain.run(str(path), arguments.peer_runs), None
    median = statistics.median(peer["latency_ms"])
    mine = ours["in_a_row_ms_median"] or ours["latency_ms_median"]
    made = {
        "peer_latency_ms_median": median,
        "ratio": median / mine,
        "online_ratio": median / ours["latency_ms_median"],
        "peer": peer,
    }
    if bound is not None:
        median = statistics.median(bound["latency_ms"])
        made |= {"peer_bound_latency_ms_median": median, "bound_ratio": median / mine}
    return made


def _show(figures: dict[str, Any]) -> None:
    from secure_quant_cli.console import table

    rows = []
    for name, value in figures.items():
        title = name.replace("_", " ").replace(" ms", "").replace(" by role", "")
        if isinstance(value, dict) and name != "peer":
            rows += [
                (f"{title}, {part.replace('_', ' ')}", _cell(name, each))
                for part, each in value.items()
            ]
        elif value is not None and name != "peer":
            rows.append((title, _cell(name, value)))
    print(table(("figure", "value"), rows))


def _cell(name: str, value: Any) -> str:
    from secure_quant_cli.console import human_bytes, milliseconds

    if "bytes" in name:
        return human_bytes(value)
    if "_ms" in name:
        return milliseconds(value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)
