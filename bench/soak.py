"""Many inferences through real processes: every integer compared, memory of each role watched.

    python bench/soak.py --engine mpc --model lenet --inferences 10000 --batch 32
    python bench/soak.py --engine he --nets 50 --inferences 5000
    python bench/soak.py --engine onehost --model lenet --inferences 10000

``--nets`` draws that many small random convolutional nets instead of one model. Prints one JSON
object: inferences, integers compared, mismatches, resident bytes of this process ("client") and of
each role after a tenth of the run and at its end; the same after every tenth to stderr. An
interrupt or SIGTERM ends it in order, with what was done until then ("stopped"); ``--seed`` goes on
with other inputs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from arguments import parser, positive, run

from secure_quant import reference
from secure_quant.ir import Graph
from secure_quant_cli.engines import exact_names
from secure_quant_cli.models import NAMES, bench_model
from secure_quant_cli.service import Service, serving


def resident(service: Service) -> dict[str, int]:
    """Role -> resident bytes now, worker processes included; and of this process without them."""
    roles = {role: _tree(process.pid) for role, process in service.cluster.processes.items()}
    return {"client": _own(os.getpid())} | roles


def _own(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _tree(pid: int) -> int:
    total = _own(pid)
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(_tree(int(child)) for child in task.read_text().split())
    return total


def random_net(seed: int) -> Graph:
    """Two convolutions and two linear layers of random shape, quantized as a user would."""
    import torch

    import secure_quant as sq

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    channels, size = int(rng.integers(1, 4)), int(rng.integers(8, 15))
    first, second, hidden = (int(n) for n in rng.integers(2, 9, 3))
    kernel, stride, padding = int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(2))
    features = torch.nn.Sequential(
        torch.nn.Conv2d(channels, first, kernel, stride, padding),
        torch.nn.ReLU(),
        torch.nn.Conv2d(first, second, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
    )
    x = torch.rand(64, channels, size, size)
    width = features(x[:1]).shape[1]
    net = torch.nn.Sequential(
        features, torch.nn.Linear(width, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 5)
    )
    return sq.quantize(net.eval(), calibration=x)


def soak(graph: Graph, engine: str, inferences: int, batch: int, seed: int) -> dict[str, Any]:
    """Figures of one model."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as work, serving(graph, Path(work), engines=(engine,)) as s:
        client = s.clients[engine]
        done = wrong = integers = 0
        early: dict[str, int] | None = None
        tenths, stopped = 0, False
        start = time.perf_counter()
        while done < inferences:
            q = rng.integers(
                -128, 128, (min(batch, inferences - done), *graph.input.shape), np.int8
            )
            expected = reference.run_int(graph, q)
            try:
                wrong += int((client.infer_int8(q) != expected).sum())
            except KeyboardInterrupt:
                stopped = True
                break
            integers += expected.size
            done += len(q)
            if 10 * done // inferences > tenths:
                tenths = 10 * done // inferences
                now = resident(s)
                early = early or now
                told = {"inferences": done, "mismatches": wrong, "resident": now}
                print(json.dumps(told), file=sys.stderr, flush=True)
        return {
            "engine": engine, "inferences": done, "integers": integers, "mismatches": wrong,
            "seconds": time.perf_counter() - start, "resident_after_a_tenth": early,
            "resident_at_the_end": resident(s), "stopped": stopped,
        }  # fmt: skip


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--engine", choices=exact_names(), required=True)
    what = line.add_mutually_exclusive_group()
    what.add_argument("--model", default="lenet", help=", ".join(NAMES))
    what.add_argument("--nets", type=positive, help="random nets instead of --model")
    line.add_argument("--inferences", type=positive, default=10_000)
    line.add_argument("--batch", type=positive, default=1)
    line.add_argument("--seed", type=int, default=0, help="of the inputs, or of the first net")
    arguments = line.parse_args()
    signal.signal(signal.SIGTERM, _interrupted)
    if arguments.nets is None:
        graph = bench_model(arguments.model)
        figures = soak(
            graph, arguments.engine, arguments.inferences, arguments.batch, arguments.seed
        )
        print(json.dumps({"model": arguments.model} | figures), flush=True)
        return 0 if figures["mismatches"] == 0 else 1
    share = -(-arguments.inferences // arguments.nets)
    total = {"inferences": 0, "integers": 0, "mismatches": 0}
    for seed in range(arguments.seed, arguments.seed + arguments.nets):
        figures = soak(random_net(seed), arguments.engine, share, arguments.batch, seed)
        total = {name: total[name] + figures[name] for name in total}
        if figures["stopped"]:
            break
    print(json.dumps({"engine": arguments.engine, "nets": arguments.nets} | total), flush=True)
    return 0 if total["mismatches"] == 0 else 1


if __name__ == "__main__":
    run(main)
