"""What `secure-quant inspect --seconds` predicts beside what is measured: seconds and memory.

    python bench/prediction.py --model lenet mlp linear:8,32 transformer resnet20
    python bench/prediction.py --engine mpc --model resnet18.sq --runs 5

Real processes on this machine over loopback, mutual TLS, one sample a call. What can be made ahead
is there before the clock starts, and each call comes after --rest seconds without one, as a
caller's first does; medians. Memory is each role's peak, pages that its processes share counted
once and those of libraries whole; the client's is not measured: it shares this process. Answers are
compared with the reference. Prints a JSON object each, and then a table for bench/RESULTS.md.
--fresh measures the rates of this machine anew; other work on it makes both sides wrong.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from arguments import parser, positive, run

from secure_quant import reference
from secure_quant.engines import find, resolved
from secure_quant.errors import OpNotSupported
from secure_quant.ir import Graph
from secure_quant_cli import prediction
from secure_quant_cli.console import human_bytes
from secure_quant_cli.engines import exact, exact_names
from secure_quant_cli.models import NAMES, bench_model
from secure_quant_cli.service import serving, timed

WARM_UP = 2


def measured(engine: str, graph: Graph, runs: int, rest_s: float) -> dict[str, Any]:
    """Median milliseconds after rest and in a row, peaks by role, integers that differ."""
    rng = np.random.default_rng(0)
    with (
        tempfile.TemporaryDirectory(prefix="secure-quant-") as work,
        serving(graph, Path(work), engines=(engine,)) as service,
    ):
        client, wrong = service.clients[engine], 0
        times: dict[float, list[float]] = {rest_s: [], 0.0: []}
        for pause, found in times.items():
            for turn in range(WARM_UP + runs):
                q = rng.integers(-128, 128, (1, *graph.input.shape), np.int8)
                if hasattr(client, "prepare"):
                    client.prepare(1)
                time.sleep(pause)
                made, took = timed(client.infer_int8, q)
                wrong += int((made != reference.run_int(graph, q)).sum())
                found += [took] if turn >= WARM_UP else []
        rested, row = (statistics.median(found) for found in times.values())
        return {
            "after_rest_ms": rested, "in_a_row_ms": row, "mismatches": wrong,
            "peak_bytes": service.cluster.memory(),
        }  # fmt: skip


def compared(name: str, engine: str, runs: int, rest_s: float) -> dict[str, Any] | None:
    """One object; None where the engine has no plan for the model."""
    graph = bench_model(name)
    try:
        plan = resolved(find(engine).plan)(graph.public())
    except OpNotSupported:
        return None
    seconds = prediction.predicted(engine, plan, 1, prediction.measured(engine))["here"]
    figures = {"engine": engine, "model": name, "predicted_ms": 1e3 * seconds}
    figures |= measured(engine, graph, runs, rest_s)
    return figures | {"predicted_bytes": exact(engine).memory(plan, 1)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| engine | model | predicted | after rest | error | in a row "
        "| memory: predicted / measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = row["predicted_ms"] / row["after_rest_ms"] - 1
        roles = ", ".join(
            f"{role} {human_bytes(row['predicted_bytes'][role])} / {human_bytes(peak)}"
            for role, peak in row["peak_bytes"].items()
        )
        lines.append(
            f"| {row['engine']} | {Path(row['model']).stem} | {row['predicted_ms']:.1f} ms "
            f"| {row['after_rest_ms']:.1f} ms | {error:+.0%} | {row['in_a_row_ms']:.1f} ms "
            f"| {roles} |"
        )
    return "\n".join(lines)


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--model", nargs="+", default=["lenet"], help=", ".join(NAMES))
    line.add_argument("--engine", nargs="+", choices=exact_names(), default=list(exact_names()))
    line.add_argument("--runs", type=positive, default=11)
    line.add_argument("--rest", type=float, default=0.2, metavar="SECONDS")
    line.add_argument("--fresh", action="store_true", help="measure this machine's rates anew")
    arguments = line.parse_args()
    if arguments.fresh:
        prediction.forget()
    rows = []
    for engine in arguments.engine:
        for name in arguments.model:
            made = compared(name, engine, arguments.runs, arguments.rest)
            if made is not None:
                print(json.dumps(made), flush=True)
                rows.append(made)
    print(table(rows))
    return 1 if any(row["mismatches"] for row in rows) else 0


if __name__ == "__main__":
    run(main)
