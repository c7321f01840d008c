"""CPU time of either end with one host, apart from any network: items made and used in one process.

    python bench/onehost.py lenet 10
    python bench/onehost.py lenet 10 --objective traffic

Milliseconds of this thread, medians; 0 integers may differ from the reference. ``sent``: bytes up
and down of the first item, and the mean of the items after it.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import numpy as np
from arguments import parser, positive, run

from secure_quant import reference
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.plan import KAPPA, plan
from secure_quant.onehost.program import ClientProgram, Host, HostProgram
from secure_quant_cli.models import bench_model
from secure_quant_client.onehost.masks import MaskKeys


def both(*runs: Any) -> tuple[list[Any], list[float], list[int]]:
    """Both ends to their end: (results, CPU milliseconds of each, bytes that each sent)."""
    messages: list[Any] = [None, None]
    spent, sent = [0.0, 0.0], [0, 0]
    while True:
        made, results = [], []
        for end, joint in enumerate(runs):
            begun = time.thread_time()
            try:
                made.append(joint.send(messages[end]))
            except StopIteration as stop:
                results.append(stop.value)
            spent[end] += 1e3 * (time.thread_time() - begun)
        if results:
            return results, spent, sent
        messages = [made[1].sent, made[0].sent]
        sent = [old + len(each.sent) for old, each in zip(sent, made, strict=True)]


def main() -> int:
    line = parser(__doc__)
    line.add_argument("model")
    line.add_argument("runs", type=positive)
    line.add_argument("--objective", choices=("latency", "traffic"), default="latency")
    options = line.parse_args()
    graph = bench_model(options.model)
    made = plan(graph, None, options.objective)
    pairings, pairing, _ = both(*(Pairing.make(i, KAPPA, made.lpn) for i in (0, 1)))
    keys: list[MaskKeys] = []
    client = ClientProgram(made, pairings[0], lambda name, r: keys[-1].share(name, r))
    host = HostProgram(made, pairings[1], Host(graph, made))
    rng, ahead, online, sent, wrong = np.random.default_rng(1), [], [], [], 0
    for _ in range(options.runs + 1):
        q = rng.integers(-128, 128, (1, *graph.input.shape)).astype(np.int8)
        begun = time.thread_time()
        keys[:] = [MaskKeys(made.masked)]
        key_ms = 1e3 * (time.thread_time() - begun)
        items, spent, size = both(client.prepare(1), host.prepare(1))
        sent.append(size)
        ahead.append([spent[0] + key_ms, spent[1]])
        results, spent, _ = both(client.run(items[0], q), host.run(items[1]))
        online.append(spent)
        wrong += int((results[0] != reference.run_int(graph, q)).sum())
    cost = made.cost()
    figures = {
        "model": options.model,
        "pairing_cpu_ms": pairing,
        "ahead_cpu_ms": [statistics.median(each) for each in zip(*ahead[1:], strict=True)],
        "mean_ahead_cpu_ms": [statistics.fmean(each) for each in zip(*ahead[1:], strict=True)],
        "sent": [sent[0], [statistics.fmean(each) for each in zip(*sent[1:], strict=True)]],
        "online_cpu_ms": [statistics.median(each) for each in zip(*online[1:], strict=True)],
        "flights": cost.flights,
        "online_bytes": [cost.bytes_up, cost.bytes_down],
        "offline_bytes": [cost.offline_bytes_up, cost.offline_bytes_down],
        "samples_of_a_client": made.calls,
        "mismatches": wrong,
    }
    print(json.dumps(figures))
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    run(main)
