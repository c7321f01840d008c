"""Accuracy and stored size of every mode and weight scheme, against the float model.

Two tasks on scikit-learn's 1,797 digits: as images 3×32×32 for the LeNet, and as sequences of 8
rows for a transformer. Each seed draws another split (a quarter is held out), other initial weights
and another order of training. Prints a table and then one JSON object; writes nothing.

    python bench/accuracy.py --seeds 10 --tasks lenet rows --modes static log "clip, mse"
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from arguments import parser, positive, run

from secure_quant import reference
from secure_quant.ir import Graph
from secure_quant.ir.artifact import encode
from secure_quant.quantizer import Clip, KMeans, Log, Training, Uniform, quantize, zoo
from secure_quant_cli.sizes import weight_bytes

TASKS: dict[str, tuple[Callable[[], Any], str]] = {
    "lenet": (zoo.LeNet, "image"),
    "rows": (zoo.RowClassifier, "rows"),
}
MODES: dict[str, dict[str, Any]] = {
    "static": {},
    "static, per tensor": {"scheme": Uniform(per_channel=False)},
    "static, mse ranges": {"calibrator": "mse"},
    "qat": {"mode": "qat"},
    "weight-only": {"mode": "weight-only"},
    "dynamic": {"mode": "dynamic"},
    "clip, mse": {"scheme": Clip()},
    "clip, percentile": {"scheme": Clip("percentile")},
    "kmeans256": {"scheme": KMeans(256)},
    "kmeans16": {"scheme": KMeans()},
    "log": {"scheme": Log()},
}
CALIBRATION = 512


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--seeds", type=positive, default=10)
    line.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    line.add_argument("--modes", nargs="+", choices=tuple(MODES), default=tuple(MODES))
    line.add_argument("--epochs", type=positive, default=8)
    arguments = line.parse_args()
    torch.set_num_threads(1)
    found = {
        task: study(task, arguments.modes, arguments.seeds, arguments.epochs)
        for task in arguments.tasks
    }
    for task, rows in found.items():
        show(task, rows)
    print(json.dumps(found))
    return 0


def study(task: str, modes: list[str], seeds: int, epochs: int) -> dict[str, dict[str, Any]]:
    """By mode: accuracies by seed, in percent; shares of float32 bytes, mean over the seeds."""
    names = ("accuracy", "weights_share", "file_share")
    found: dict[str, dict[str, list[float]]] = {
        mode: {name: [] for name in names} for mode in ("float", *modes)
    }
    build, form = TASKS[task]
    for seed in range(seeds):
        start = time.monotonic()
        data = zoo.digits(form, seed=seed)
        model = zoo.train(build, data, epochs=epochs, seed=seed)
        with torch.no_grad():
            logits = model(torch.from_numpy(data.test_x)).numpy()
        found["float"]["accuracy"].append(100 * zoo.accuracy(logits, data.test_y))
        for mode in modes:
            graph = quantized(model, data, MODES[mode], seed)
            y = reference.run(graph, data.test_x)
            weights, file = shares(model, graph)
            for name, value in zip(
                names, (100 * zoo.accuracy(y, data.test_y), weights, file), strict=True
            ):
                found[mode][name].append(value)
        print(f"{task}: seed {seed} in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return {mode: summary(row, found["float"]["accuracy"]) for mode, row in found.items()}


def quantized(model: Any, data: zoo.Split, options: dict[str, Any], seed: int) -> Graph:
    if options.get("mode") == "qat":
        training = Training(epochs=2, seed=seed)
        return quantize(model, data.train_x, targets=data.train_y, training=training, **options)
    return quantize(model, data.train_x[:CALIBRATION], max_error=float("inf"), **options)


def shares(model: Any, graph: Graph) -> tuple[float, float]:
    """Stored weights and codebooks over the same as float32, and the whole model file over all
    parameters of the float model."""
    stored, floats = weight_bytes(graph)
    parameters = 4 * sum(parameter.numel() for parameter in model.parameters())
    return stored / floats, len(encode(graph)) / parameters


def summary(row: dict[str, list[float]], floats: list[float]) -> dict[str, Any]:
    difference = np.subtract(row["accuracy"], floats)
    made: dict[str, Any] = {
        "accuracy": row["accuracy"],
        "mean": float(np.mean(row["accuracy"])),
        "difference": float(difference.mean()),
        "worst_difference": float(difference.min()),
    }
    for name in ("weights_share", "file_share"):
        made[name] = float(np.mean(row[name])) if row[name] else 1.0
    return made


def show(task: str, rows: dict[str, dict[str, Any]]) -> None:
    count = len(rows["float"]["accuracy"])
    print(f"\n{task}, {count} seeds; differences to float in points, bytes as shares of float32\n")
    print(f"{'':20}{'accuracy':>10}{'difference':>12}{'worst':>8}{'weights':>9}{'file':>8}")
    for mode, row in rows.items():
        print(
            f"{mode:20}{row['mean']:>9.2f}%{row['difference']:>+12.2f}"
            f"{row['worst_difference']:>+8.2f}{row['weights_share']:>9.3f}{row['file_share']:>8.3f}"
        )


if __name__ == "__main__":
    run(main)
