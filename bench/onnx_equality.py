"""onnxruntime against the reference over the whole zoo: every model, every weight scheme, random
inputs over all of int8. Prints one line per pair and the number of integers that differ.

    python bench/onnx_equality.py --inputs 1000 --layers 100 --models lenet resnet20 --schemes log

The first ``--layers`` inputs are compared in every layer, the others at the output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from arguments import parser, positive, run

from secure_quant import reference
from secure_quant.interop.onnx_export import to_onnx
from secure_quant.ir import Graph
from secure_quant.quantizer import Clip, KMeans, Log, Uniform, quantize, zoo

ZOO: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (zoo.linear, (8,)),
    "mlp": (zoo.mlp, (64,)),
    "lenet": (zoo.LeNet, (3, 32, 32)),
    "lenet-no-bias": (lambda: zoo.LeNet(bias=False, padding=2), (3, 32, 32)),
    "depthwise": (zoo.DepthwiseNet, (3, 32, 32)),
    "resnet20": (zoo.ResNet, (3, 32, 32)),
    "row-classifier": (zoo.RowClassifier, (8, 8)),
    "transformer": (zoo.TransformerEncoder, (16, 64)),
}
SCHEMES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "per-tensor": {"scheme": Uniform(per_channel=False)},
    "clip-mse": {"scheme": Clip()},
    "clip-percentile": {"scheme": Clip("percentile")},
    "log": {"scheme": Log()},
    "kmeans16": {"scheme": KMeans()},
    "kmeans256": {"scheme": KMeans(256)},
    "keep-small": {"scheme": Uniform(keep_small=True)},
    "weight-only": {"mode": "weight-only"},
}
BATCH = 50


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--inputs", type=positive, default=1000)
    line.add_argument("--layers", type=int, default=100)
    line.add_argument("--models", nargs="+", choices=tuple(ZOO), default=tuple(ZOO))
    line.add_argument("--schemes", nargs="+", choices=tuple(SCHEMES), default=tuple(SCHEMES))
    arguments = line.parse_args()
    wrong = compared = 0
    for name in arguments.models:
        for scheme in arguments.schemes:
            start = time.monotonic()
            graph = build(name, scheme)
            differ, seen = compare(graph, arguments.inputs, arguments.layers)
            wrong, compared = wrong + differ, compared + seen
            took = time.monotonic() - start
            print(f"{name:15} {scheme:16} {differ} of {seen:,} differ, {took:.1f} s", flush=True)
    print(f"in all: {wrong} of {compared:,} integers differ")
    return 0 if wrong == 0 else 1


def build(name: str, scheme: str) -> Graph:
    """A model of the zoo with random weights, calibrated on normal noise."""
    model, shape = ZOO[name]
    torch.manual_seed(1)
    calibration = np.random.default_rng(1).normal(size=(32, *shape))
    return quantize(model(), calibration, max_error=float("inf"), **SCHEMES[scheme])


def compare(graph: Graph, inputs: int, layers: int) -> tuple[int, int]:
    """(integers that differ, integers compared)."""
    inner, outer = (session(graph, inner=inner) for inner in (True, False))
    rng = np.random.default_rng(2)
    wrong = compared = 0
    for start in range(0, inputs, BATCH):
        shape = (min(BATCH, inputs - start), *graph.input.shape)
        q = rng.integers(-128, 128, shape).astype(np.int8)
        if start < layers:
            truth = reference.trace(graph, q)
            truth["y"] = truth[graph.output.name]
            made = infer(inner, q)
        else:
            truth, made = {"y": reference.run_int(graph, q)}, infer(outer, q)
        for name, values in made.items():
            wrong += int((values != truth[name.removeprefix("ir/")]).sum())
            compared += values.size
    return wrong, compared


def session(graph: Graph, *, inner: bool) -> onnxruntime.InferenceSession:
    data = to_onnx(graph, inner=inner).SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def infer(model: onnxruntime.InferenceSession, q: Any) -> dict[str, Any]:
    names = [output.name for output in model.get_outputs()]
    return dict(zip(names, model.run(None, {"x": q}), strict=True))


if __name__ == "__main__":
    run(main)
