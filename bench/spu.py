"""SecretFlow SPU on the same networks, by hand, in an environment of its own.

    python -m venv spu-env && spu-env/bin/pip install spu==0.9.5
    spu-env/bin/python bench/spu.py --model lenet --batch 1 --runs 9

One process per party over loopback (plain TCP, brpc), secret input and secret weights, the clock
between two barriers, compilation and secret sharing of the weights left out. Prints one JSON
object per protocol. Its answer is opened after the last run and compared with plain jax on the
same arrays; one that is off by a tenth of the largest output ends the script. SEMI2K draws its
correlated randomness at the first party, which is not secure against that party; ABY3 needs three
parties; Cheetah needs no dealer. ``bench/beside.py`` runs it and ours in turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import numpy as np

# This file would shadow the package it measures: its folder comes last, also in what it starts.
FOLDER = Path(__file__).resolve().parent
sys.path = [*(each for each in sys.path if Path(each or ".").resolve() != FOLDER), str(FOLDER)]

PROTOCOLS = {"SEMI2K": 2, "ABY3": 3, "CHEETAH": 2}
PATIENCE_S = 600
"""That a party waits for another one: one layer may take long."""
WRONG = 0.1
"""Errors above this share of the largest output: the network does not work."""


@dataclass(frozen=True)
class Task:
    """What one party is told."""

    model: str
    batch: int
    layers: int
    puma: bool
    runs: int
    bound: bool
    protocol: str
    ports: list[int]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def party(rank: int, task: Task, results: Any) -> None:
    """Be one of them, and leave its share of the answer in ``results``; the first party also the
    times, and the answer of plain jax."""
    from spu import api, libspu
    from spu.utils import frontend
    from spu_networks import network

    os.dup2(2, 1)  # where its log would be among the figures
    _end_with_parent()
    if task.bound:
        cores, parties = sorted(os.sched_getaffinity(0)), len(task.ports)
        each = len(cores) // parties
        os.sched_setaffinity(0, cores[rank * each :][:each])
    made = network(task.model, task.batch, layers=task.layers, puma=task.puma)
    names = [f"in{i}" for i in range(len(made.arrays))]
    secret = libspu.Visibility.VIS_SECRET
    options = libspu.CompilerOptions()
    options.enable_optimize_denominator_with_broadcast = True  # as SPU's own examples have it
    executable, _ = frontend.compile(
        frontend.Kind.JAX, made.call, made.arrays, {}, names, [secret] * len(names),
        lambda _: ["out"], copts=options,
    )  # fmt: skip
    config = libspu.RuntimeConfig(
        protocol=getattr(libspu.ProtocolKind, task.protocol), field=libspu.FieldType.FM64
    )
    link = _connect(libspu, rank, task.ports)
    runtime = api.Runtime(link, config)
    io = api.Io(len(task.ports), config)
    # The first party shares the test data for all; its cost is outside the clock.
    for name, array in zip(names, made.arrays, strict=True):
        if rank == 0:
            results[name] = io.make_shares(array, secret)
        runtime.set_var(name, _wait(results, name)[rank])
    times = []
    for turn in range(task.runs + 1):
        link.barrier()
        start = time.perf_counter()
        runtime.run(executable)
        link.barrier()
        if turn:
            times.append((time.perf_counter() - start) * 1e3)
    results[f"out of {rank}"] = runtime.get_var("out")
    results[f"memory of {rank}"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if rank == 0:
        shares = [_wait(results, f"out of {other}") for other in range(len(task.ports))]
        opened, expected = io.reconstruct(shares), np.asarray(made.call(*made.arrays))
        results["max_output"] = float(np.abs(expected).max())
        results["max_error"] = float(np.abs(opened - expected).max())
        results["times"] = times
    link.stop_link()


def _end_with_parent() -> None:
    """Should the script be killed, none of its processes computes or waits on."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _connect(libspu: Any, rank: int, ports: Sequence[int]) -> Any:
    description = libspu.link.Desc()
    description.recv_timeout_ms = description.http_timeout_ms = 1000 * PATIENCE_S
    for i, port in enumerate(ports):
        description.add_party(f"p{i}", f"127.0.0.1:{port}")
    return libspu.link.create_brpc(description, rank)


def _wait(results: Any, name: str) -> Any:
    while name not in results:
        time.sleep(0.05)
    return results[name]


def _join(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Wait for all; the others never end once one has failed, and are ended."""
    running = list(processes)
    while running:
        multiprocessing.connection.wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode is None]
        if any(process.exitcode for process in processes):
            for process in running:
                process.kill()
                process.join()
            return


def measure(task: Task) -> dict[str, Any]:
    """The figures of one protocol."""
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(initializer=_end_with_parent)
    with manager:
        results = manager.dict()
        processes = [
            context.Process(target=party, args=(rank, task, results))
            for rank in range(len(task.ports))
        ]
        for process in processes:
            process.start()
        _join(processes)
        if "times" not in results:
            raise SystemExit(f"{task.protocol}: a party failed")
        memory = max(results[f"memory of {rank}"] for rank in range(len(task.ports)))
        times, error, largest = (results[each] for each in ("times", "max_error", "max_output"))
    figures = {
        "peer": f"spu {metadata.version('spu')} {task.protocol}", "model": task.model,
        "batch": task.batch, "layers": task.layers if task.model == "bert" else None,
        "puma": task.puma, "bound": task.bound, "runs": task.runs,
        "latency_ms_median": float(np.median(times)),
        "latency_ms_p90": float(np.percentile(times, 90)),
        "max_error": error, "max_output": largest, "peak_memory_bytes_of_a_party": memory,
    }  # fmt: skip
    if not error <= WRONG * largest:
        raise SystemExit(f"{task.protocol}: the network does not work: {json.dumps(figures)}")
    return figures


def main() -> None:
    from spu_networks import NAMES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=NAMES, default="lenet")
    parser.add_argument("--layers", type=int, default=1, help="of bert")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9, help="timed, after one that is not")
    parser.add_argument(
        "--bound", action="store_true", help="each party on cores of its own, as `bench` runs ours"
    )
    parser.add_argument(
        "--puma", action="store_true",
        help="of transformers: PUMA's coarser GELU and softmax in place of jax's",
    )  # fmt: skip
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), action="append")
    arguments = parser.parse_args()
    if min(arguments.batch, arguments.runs, arguments.layers) < 1:
        parser.error("--batch, --runs and --layers: expected >= 1")
    try:
        metadata.version("spu")
    except metadata.PackageNotFoundError:
        parser.error("needs spu in an environment of its own: see --help")
    for protocol in arguments.protocol or list(PROTOCOLS):
        parties = PROTOCOLS[protocol]
        bound = arguments.bound and parties <= len(os.sched_getaffinity(0))
        task = Task(
            arguments.model, arguments.batch, arguments.layers, arguments.puma, arguments.runs,
            bound, protocol, free_ports(parties),
        )  # fmt: skip
        print(json.dumps(measure(task)), flush=True)


if __name__ == "__main__":
    main()
