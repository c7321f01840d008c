"""Orion (Lattigo) on the same linear layers, by hand, in an environment of its own.

    python -m venv orion-env
    orion-env/bin/pip install torch==2.13.0 scipy==1.14.1 "numpy<2.3" pyyaml tqdm matplotlib h5py
    orion-env/bin/pip install --no-deps orion-fhe==1.0.2 certifi
    orion-env/bin/python bench/orion.py --layers lenet

Each layer is a network of its own: encrypt, evaluate, decrypt, in the faster of two 128-bit rings:
the smallest that holds what it reads and makes in one ciphertext each, and half of it. The answer
is approximate, and one that is off by a hundredth of the largest output ends the script; rotation
keys stay at the server and are not counted here. Prints one JSON object per layer and one for the
sum. ``bench/linear_layers.py`` runs it and ours in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

# This file would shadow the package it measures.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parent]

WRONG = 0.01


@dataclass(frozen=True)
class Layer:
    """A linear layer, or a convolution on squares; ``count``: so often a network has it."""

    reads: int
    makes: int
    kernel: int = 0
    size: int = 1
    stride: int = 1
    padding: int = 0
    count: int = 1

    @property
    def inputs(self) -> int:
        return self.reads * self.size**2

    @property
    def outputs(self) -> int:
        if not self.kernel:
            return self.makes
        side = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        return int(self.makes * side**2)

    def __str__(self) -> str:
        if not self.kernel:
            return f"linear {self.reads}→{self.makes}"
        step = f" / {self.stride}" if self.stride > 1 else ""
        kernel, image = f"{self.kernel}×{self.kernel}{step}", f"{self.size}×{self.size}"
        return f"conv {self.reads}→{self.makes}, {kernel}, on {image}"


def _resnet20() -> tuple[Layer, ...]:
    """He et al. 2016, section 4.2, with convolutions in the shortcuts of stages two and three."""
    made = [Layer(3, 16, 3, 32, 1, 1), Layer(16, 16, 3, 32, 1, 1, 6)]
    for width, size in ((16, 32), (32, 16)):
        made.append(Layer(width, 2 * width, 3, size, 2, 1))
        made.append(Layer(width, 2 * width, 1, size, 2, 0))
        made.append(Layer(2 * width, 2 * width, 3, size // 2, 1, 1, 5))
    return (*made, Layer(64, 10))


LAYERS = {
    "lenet": (
        Layer(3, 6, 5, 32), Layer(6, 16, 5, 14), Layer(400, 120), Layer(120, 84), Layer(84, 10),
    ),
    "linear": (Layer(400, 120), Layer(768, 768)),
    "resnet20": _resnet20(),
}  # fmt: skip
SMALL = {"LogQ": [40, 28], "LogP": [40], "LogScale": 28}
LARGE = {"LogQ": [55, 40], "LogP": [60], "LogScale": 40}


def rings(layer: Layer) -> list[int]:
    """Logarithms of the degrees to try: half of them are the slots of a ciphertext."""
    whole = math.ceil(math.log2(max(layer.inputs, layer.outputs))) + 1
    return [max(12, whole)] if whole < 13 else [whole - 1, whole]


def measure(layer: Layer, runs: int, log_n: int) -> dict[str, Any]:
    """Of one layer. 128 bits of security by the table of the homomorphic encryption standard."""
    import orion
    import orion.nn as on
    import torch

    class Net(on.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            if layer.kernel:
                told = (layer.reads, layer.makes, layer.kernel, layer.stride, layer.padding)
                self.layer = on.Conv2d(*told)
            else:
                self.layer = on.Linear(layer.reads, layer.makes)

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    moduli = SMALL if log_n == 12 else LARGE
    config = {
        "ckks_params": {"LogN": log_n, **moduli, "H": 192, "RingType": "Standard"},
        "orion": {"margin": 2, "embedding_method": "hybrid", "backend": "lattigo",
                  "fuse_modules": True, "debug": False, "io_mode": "none"},
    }  # fmt: skip
    torch.manual_seed(1)
    with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
        orion.init_scheme(config)
        net = Net()
        net.eval()
        x = torch.rand(
            (1, layer.reads, layer.size, layer.size) if layer.kernel else (1, layer.reads)
        )
        expected = net(x)
        orion.fit(net, x)
        level = orion.compile(net)
        net.he()
        times = []
        for turn in range(runs + 1):
            start = time.perf_counter()
            made = net(orion.encrypt(orion.encode(x, level))).decrypt().decode()
            if turn:
                times.append((time.perf_counter() - start) * 1e3)
    error = float((_opened(net.layer, made, expected.shape) - expected).abs().max())
    largest = float(expected.abs().max())
    orion.delete_scheme()
    figures = {
        "peer": f"orion {metadata.version('orion-fhe')}", "layer": str(layer), **asdict(layer),
        "log_n": log_n, "runs": runs, "latency_ms_median": float(np.median(times)),
        "max_error": error, "max_output": largest,
    }  # fmt: skip
    if not error <= WRONG * largest:
        raise SystemExit(f"{layer}: the layer does not work: {json.dumps(figures)}")
    return figures


def _opened(module: Any, made: Any, shape: Any) -> Any:
    """What stands where Orion puts it: after a stride, channels lie in squares beside each other,
    and a valid convolution leaves the rows and columns that it has not."""
    import torch

    if len(shape) == 2:
        return made.reshape(-1)[: shape[1]].reshape(shape)
    apart = torch.nn.functional.pixel_unshuffle(
        made.reshape(1, *module.fhe_output_shape[1:]), module.output_gap
    )
    return apart[:, : shape[1], : shape[2], : shape[3]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", choices=sorted(LAYERS), default="lenet")
    parser.add_argument("--only", type=int, metavar="I", help="the layer at that place, from 0")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    chosen = LAYERS[arguments.layers]
    if arguments.runs < 1:
        parser.error("--runs: expected >= 1")
    if arguments.only is not None:
        if not 0 <= arguments.only < len(chosen):
            parser.error(f"--only: expected 0 to {len(chosen) - 1}")
        chosen = chosen[arguments.only :][:1]
    try:
        metadata.version("orion-fhe")
    except metadata.PackageNotFoundError:
        parser.error("needs orion-fhe in an environment of its own: see --help")
    os.environ.setdefault("GOMAXPROCS", "2")
    total = 0.0
    for layer in chosen:
        tried = [measure(layer, arguments.runs, log_n) for log_n in rings(layer)]
        figures = min(tried, key=lambda each: float(each["latency_ms_median"]))
        total += layer.count * figures["latency_ms_median"]
        print(json.dumps(figures), flush=True)
    print(
        json.dumps({"peer": figures["peer"], "layers": arguments.layers, "latency_ms_sum": total})
    )


if __name__ == "__main__":
    main()
