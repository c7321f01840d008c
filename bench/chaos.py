"""Kills every role of a running cluster under load: how long until answers come again, and are they
right.

    python bench/chaos.py --kills 5
    python bench/chaos.py --kills 3 --border none --clients 4

A role that is killed is started again at once, as a supervisor would; lanes and evaluation
processes are their fronts' business. A stuck one gets SIGSTOP in place of SIGKILL. Healing is
counted from the signal to the first right answer after which no call fails for a while. Prints one
JSON object: for each target the seconds of every kill, their median and most; answers right and
wrong; failed calls by the name of their error.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from arguments import parser, positive, run

from secure_quant import reference
from secure_quant.engines import find
from secure_quant.errors import SecureQuantError
from secure_quant.ir import Graph
from secure_quant.transport import Tls
from secure_quant.transport.certs import make_all
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.models import NAMES, bench_model
from secure_quant_cli.split import split_for, write_bundles

CALL_S = 2.0
PATIENCE_S = 90.0
QUIET_S = 1.5
TARGETS = {
    "mpc": (
        "lane of party0",
        "lane of party1",
        "stuck lane of party0",
        "stuck lane of party1",
        "dealer",
        "party0",
        "party1",
    ),
    "he": ("worker of he", "stuck worker of he", "he"),
}


class Load:
    """Clients that ask without pause; every answer is compared."""

    def __init__(self, connect: Callable[[], Any], graph: Graph, clients: int) -> None:
        self._connect, self._graph = connect, graph
        self.right = self.wrong = 0
        self.errors: Counter[str] = Counter()
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._after = float("inf")
        self._first_right: float | None = None  # when its answer came
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def healed(self, since: float) -> float:
        """Seconds from ``since`` to the first right answer after which, for ``QUIET_S``, no call
        failed."""
        with self._lock:
            self._after, self._first_right = since, None
        while time.monotonic() < since + PATIENCE_S:
            with self._lock:
                first = self._first_right
            if first is not None and time.monotonic() > first + QUIET_S:
                return first - since
            time.sleep(0.01)
        raise TimeoutError(f"no answer for {PATIENCE_S} s")

    def _ask(self, number: int) -> None:
        rng = np.random.default_rng(number)
        with self._connect() as client:
            while not self._ends.is_set():
                q = rng.integers(-128, 128, (1, *self._graph.input.shape), np.int8)
                expected, begun = reference.run_int(self._graph, q), time.monotonic()
                try:
                    same = np.array_equal(client.infer_int8(q, timeout=CALL_S), expected)
                except SecureQuantError as error:
                    with self._lock:
                        self.errors[type(error).__name__] += 1
                        self._first_right = None
                    time.sleep(0.02)
                    continue
                with self._lock:
                    self.right += same
                    self.wrong += not same
                    if same and begun > self._after and self._first_right is None:
                        self._first_right = time.monotonic()


def children(pid: int) -> list[int]:
    """Of one process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def kill(cluster: Cluster, target: str) -> float:
    """The time of the signal. A role that was killed runs again on return."""
    place, _, role = target.rpartition(" of ")
    front = cluster.processes[role]
    if place:
        victim = next(worker for template in children(front.pid) for worker in children(template))
        os.kill(victim, signal.SIGSTOP if place.startswith("stuck") else signal.SIGKILL)
        return time.monotonic()
    front.kill()
    at = time.monotonic()
    front.wait()
    if front.stdin is not None:
        front.stdin.close()
    with (cluster.logs / f"{role}.log").open("ab") as log:
        cluster.processes[role] = subprocess.Popen(  # noqa: S603  as it was started before
            front.args, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    return at


def chaos(
    graph: Graph, engine: str, kills: int, clients: int, options: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Figures of one engine."""
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        folder = Path(work)
        write_bundles(split_for(graph, engine), folder / engine)
        make_all(folder / "certs")
        folders = {engine: folder / engine}
        cluster = stack.enter_context(
            Cluster(folder / "certs", folder / "logs", folders, options=options)
        )
        tls = Tls.from_dir(folder / "certs", "client")

        def connect() -> Any:
            return find(engine).connect(cluster.targets[engine], tls=tls, expected_hash=graph.hash)

        load = stack.enter_context(Load(connect, graph, clients))
        load.healed(time.monotonic())
        healing: dict[str, list[float]] = {target: [] for target in TARGETS[engine]}
        for _ in range(kills):
            for target, seconds in healing.items():
                time.sleep(1.0)
                seconds.append(round(load.healed(kill(cluster, target)), 2))
    figures = {
        target: {"seconds": found, "median": statistics.median(found), "most": max(found)}
        for target, found in healing.items()
    }
    return {
        "engine": engine, "healing": figures, "right": load.right, "wrong": load.wrong,
        "errors": dict(load.errors),
    }  # fmt: skip


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--engine", choices=("mpc", "he", "both"), default="both")
    line.add_argument("--model", default="lenet", help=", ".join(NAMES))
    line.add_argument("--kills", type=positive, default=5, help="of each target")
    line.add_argument("--clients", type=positive, default=1)
    line.add_argument("--border", choices=("crypten", "none"), default="crypten")
    arguments = line.parse_args()
    graph = bench_model(arguments.model)
    border = ("--border", arguments.border)
    engines = ("mpc", "he") if arguments.engine == "both" else (arguments.engine,)
    wrong = 0
    for engine in engines:
        options = {"party0": border, "party1": border} if engine == "mpc" else {}
        found = chaos(graph, engine, arguments.kills, arguments.clients, options)
        about = {"model": arguments.model, "clients": arguments.clients, "border": arguments.border}
        print(json.dumps(about | {"load_average": os.getloadavg()[0]} | found), flush=True)
        wrong += found["wrong"]
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    run(main)
