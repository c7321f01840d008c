"""The HE server on Ray Serve: answers a second against replicas, every answer checked.

    make ray && python bench/ray_replicas.py --replicas 1 2 --clients 4 --seconds 20

For each number a fresh cluster of two nodes with deploy/ray's application, and so many clients in
this process, each with a connection of its own, that ask again as soon as they have their answer.
Servers and clients share this machine's cores: a client decrypts and encrypts between the layers.
Prints one JSON object a number: answers right and wrong, answers a second, milliseconds of a call
(median, 90 in a hundred), CPU seconds of an answer: of the clients and of each replica.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from arguments import parser, positive, run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from e2e.ray_process import RAY, Ray

from secure_quant import reference
from secure_quant.errors import ConfigError
from secure_quant.ir import Graph
from secure_quant.transport import InsecurePlaintext
from secure_quant_cli.models import NAMES, bench_model
from secure_quant_cli.processes import cpu_seconds
from secure_quant_client import HeClient

DIFFERENT = 16


def measured(graph: Graph, replicas: int, clients: int, seconds: float) -> dict[str, Any]:
    """Of a cluster of its own."""
    shape = (1, *graph.input.shape)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(-128, 128, shape, np.int8) for _ in range(DIFFERENT)]
    answers = [reference.run_int(graph, q) for q in inputs]
    waits: list[float] = []
    wrong: list[int] = []
    begin = threading.Barrier(clients + 1)

    def ask(first: int) -> None:
        tls = InsecurePlaintext()
        with HeClient(cluster.target, tls=tls, expected_hash=graph.hash) as client:
            for number in range(2 * replicas):  # keys, plans and connections are made before
                client.infer_int8(inputs[number % DIFFERENT])
            begin.wait()
            number, until = first, time.monotonic() + seconds
            while time.monotonic() < until:
                number = (number + 1) % DIFFERENT
                begun = time.perf_counter()
                found = client.infer_int8(inputs[number])
                took = time.perf_counter() - begun
                if np.array_equal(found, answers[number]):
                    waits.append(took * 1e3)
                else:
                    wrong.append(number)

    with tempfile.TemporaryDirectory() as folder:
        cluster = Ray(Path(folder), graph, replicas=replicas)
        try:
            threads = [threading.Thread(target=ask, args=(each,)) for each in range(clients)]
            for thread in threads:
                thread.start()
            begin.wait()
            ours, pids = time.process_time(), [each["pid"] for each in cluster.tell("state")]
            theirs = [cpu_seconds(pid) or 0.0 for pid in pids]
            for thread in threads:
                thread.join()
            ours = time.process_time() - ours
            theirs = [
                (cpu_seconds(pid) or 0.0) - before for pid, before in zip(pids, theirs, strict=True)
            ]
        finally:
            cluster.end()
    middle, ninety = np.percentile(waits or [np.nan], [50, 90])
    answered = max(1, len(waits))
    return {
        "right": len(waits), "wrong": len(wrong), "answers_per_second": len(waits) / seconds,
        "latency_ms_median": float(middle), "latency_ms_p90": float(ninety),
        "client_cpu_s_of_an_answer": ours / answered,
        "replica_cpu_s_of_an_answer": sum(theirs) / answered,
        "replica_cpu_s": theirs,
    }  # fmt: skip


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--model", default="lenet", help=", ".join(NAMES))
    line.add_argument("--replicas", type=positive, nargs="+", default=[1, 2])
    line.add_argument("--clients", type=positive, default=4)
    line.add_argument("--seconds", type=positive, default=20)
    arguments = line.parse_args()
    if not RAY.exists():
        raise ConfigError("Ray", got="no environment of its own here", expected="make ray")
    graph, fine = bench_model(arguments.model), True
    for replicas in arguments.replicas:
        about = {
            "model": arguments.model, "replicas": replicas, "clients": arguments.clients,
            "seconds": arguments.seconds, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        }  # fmt: skip
        found = measured(graph, replicas, arguments.clients, arguments.seconds)
        print(json.dumps(about | found), flush=True)
        fine = fine and not found["wrong"] and found["right"] > 0
    return 0 if fine else 1


if __name__ == "__main__":
    run(main)
