"""What each example says of a model: bytes and rounds by plan, time in plaintext and encrypted."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant import reference
from secure_quant.ir import Graph
from secure_quant.mpc.protocol.plan import plan
from secure_quant_cli.engines import in_process


def costs(graph: Graph) -> None:
    """Of one inference under secret sharing, exact, before any key exists."""
    cost = plan(graph).cost(batch=1)
    material = max(cost.offline_bytes_party0, cost.offline_bytes_party1)
    print(f"secret sharing, one inference: {cost.rounds} rounds, "
          f"{cost.online_bytes_per_direction / 1e6:.2f} MB each way, "
          f"{material / 1e6:.1f} MB of material to a party ahead of time")  # fmt: skip


def encrypted(graph: Graph, engine: str, q: NDArray[np.int8]) -> bool:
    """Run one sample under an engine, all its parties in this process, and compare each integer."""
    truth = reference.run_int(graph, q[:1])
    start = time.perf_counter()
    made = in_process(engine, graph)(q[:1]).values[graph.output.name]
    seconds = time.perf_counter() - start
    same = bool((made == truth).all())
    print(f"{engine}: one inference with its preparation in {seconds:.1f} s, "
          f"bit-exact: {'yes' if same else 'NO'}")  # fmt: skip
    return same


def plaintext(graph: Graph, q: NDArray[Any]) -> NDArray[np.float32]:
    """float32 outputs of the reference; prints the time of a sample."""
    start = time.perf_counter()
    made = [reference.run_int(graph, q[place : place + 10]) for place in range(0, len(q), 10)]
    print(f"plaintext integers: {(time.perf_counter() - start) / len(q) * 1000:.0f} ms a sample")
    return reference.dequantize(graph, np.concatenate(made))
