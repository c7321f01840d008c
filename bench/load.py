"""Many clients of a running service at once: how long each waits, how many are served, who is
refused, and whether every answer is right.

    python bench/load.py --engine mpc --clients 64 --seconds 30
    python bench/load.py --engine he --clients 64 --workers 2
    python bench/load.py --engine mpc --through grpc      callers of `secure-quant gateway`
    python bench/load.py --engine mpc --through http

Each client has a connection of its own and asks again as soon as it has its answer, or a named
refusal. Callers of the gateway send float32 in the Open Inference Protocol, batch 1. Prints one
JSON object: answers right and wrong, answers a second, milliseconds of a call (median, 90 and 99 in
a hundred, most), refusals by the name of their error, the fewest and the most answers that one
client got, and each role's peak memory.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from arguments import parser, positive, run
from numpy.typing import NDArray
from oip import GrpcCaller, HttpCaller, gateway

from secure_quant import reference
from secure_quant.engines import engines
from secure_quant.errors import SecureQuantError
from secure_quant.ir import Graph
from secure_quant_cli.models import NAMES, bench_model
from secure_quant_cli.service import Service, serving

DIFFERENT = 16
"""Inputs; their answers are known before the load begins."""
PAUSE_S = 0.05
"""After a refusal, as a client that means well would wait."""


@dataclass
class Caller:
    """One client. waits_ms: of its right answers."""

    infer: Callable[[Any], Any]
    waits_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def ask(
        self, inputs: list[NDArray[Any]], answers: list[NDArray[Any]], first: int, until: float
    ) -> None:
        """Call after call, beginning with input number ``first``."""
        number = first
        while time.monotonic() < until:
            number = (number + 1) % len(inputs)
            begun = time.perf_counter()
            try:
                answer = self.infer(inputs[number])
            except SecureQuantError as error:
                self.refused[type(error).__name__] += 1
                time.sleep(PAUSE_S)
                continue
            if np.array_equal(answer, answers[number]):
                self.waits_ms.append((time.perf_counter() - begun) * 1e3)
            else:
                self.wrong += 1


def load(
    graph: Graph, engine: str, clients: int, seconds: float, through: str, **service: int
) -> dict[str, Any]:
    """Figures of ``clients`` callers for ``seconds``. service: lanes, workers."""
    rng = np.random.default_rng(0)
    shape = (1, *graph.input.shape)
    inputs: list[Any] = [rng.integers(-128, 128, shape, np.int8) for _ in range(DIFFERENT)]
    run = reference.run_int
    if through != "client":
        inputs = [(q.astype(np.float32) * graph.input.scale).astype(np.float32) for q in inputs]
        run = reference.run  # type: ignore[assignment]
    answers = [run(graph, q) for q in inputs]
    with (
        tempfile.TemporaryDirectory() as work,
        serving(graph, Path(work), engines=(engine,), **service) as running,
        ExitStack() as stack,
    ):
        if through == "client":
            infers = [running.connect(engine).infer_int8 for _ in range(clients)]
        else:
            infers = _through(stack, through, running, engine, clients, Path(work))
        callers = [Caller(infer) for infer in infers]
        for caller in callers:  # connections and plans are made before the clock runs
            caller.infer(inputs[0])
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=caller.ask, args=(inputs, answers, place, until))
            for place, caller in enumerate(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        memory = running.cluster.memory()
    waits = [wait for caller in callers for wait in caller.waits_ms]
    served = [len(caller.waits_ms) for caller in callers]
    refused = sum((caller.refused for caller in callers), Counter[str]())
    middle, ninety, most = np.percentile(waits or [np.nan], [50, 90, 99])
    return {
        "right": len(waits), "wrong": sum(caller.wrong for caller in callers),
        "answers_per_second": len(waits) / seconds, "latency_ms_median": float(middle),
        "latency_ms_p90": float(ninety), "latency_ms_p99": float(most),
        "latency_ms_most": max(waits, default=float("nan")), "refused": dict(refused),
        "answers_of_a_client": [min(served), max(served)], "peak_memory_bytes": memory,
    }  # fmt: skip


def _through(
    stack: ExitStack, through: str, running: Service, engine: str, clients: int, work: Path
) -> list[Callable[[Any], Any]]:
    """Of callers of one gateway before the servers."""
    graph = running.graph
    about = gateway(running.cluster, engine, graph.hash, work / "gateway.log")
    grpc_at, http_at, process = stack.enter_context(about)
    running.cluster.processes["gateway"] = process  # its memory counts too
    stack.callback(running.cluster.processes.pop, "gateway")
    name = graph.input_ports[0].name
    made: list[Any] = [
        GrpcCaller(grpc_at, name) if through == "grpc" else HttpCaller(http_at, name)
        for _ in range(clients)
    ]
    for each in made:
        stack.callback(each.close)
    return [each.infer for each in made]


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--engine", choices=[e.name for e in engines() if e.exact], required=True)
    line.add_argument("--model", default="lenet", help=", ".join(NAMES))
    line.add_argument("--clients", type=positive, default=64)
    line.add_argument("--seconds", type=positive, default=30)
    line.add_argument("--lanes", type=positive, default=1, help="of secret sharing")
    line.add_argument("--workers", type=positive, default=1, help="of homomorphic encryption")
    line.add_argument("--through", choices=("client", "grpc", "http"), default="client",
                      help="our client, or a gateway by one form of its protocol")  # fmt: skip
    arguments = line.parse_args()
    about = {
        "engine": arguments.engine, "model": arguments.model, "clients": arguments.clients,
        "seconds": arguments.seconds, "through": arguments.through, "lanes": arguments.lanes,
        "workers": arguments.workers, "cores": os.cpu_count(),
    }  # fmt: skip
    found = load(
        bench_model(arguments.model), arguments.engine, arguments.clients, arguments.seconds,
        arguments.through, lanes=arguments.lanes, workers=arguments.workers,
    )  # fmt: skip
    print(json.dumps(about | found), flush=True)
    return 0 if found["wrong"] == 0 and found["right"] else 1


if __name__ == "__main__":
    run(main)
