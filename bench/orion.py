"""Orion (Lattigo) on the same linear layers, by hand, in an environment of its own.

    python -m venv orion-env
    orion-env/bin/pip install torch==2.13.0 scipy==1.14.1 "numpy<2.3" pyyaml tqdm matplotlib h5py
    orion-env/bin/pip install --no-deps orion-fhe==1.0.2 certifi
    orion-env/bin/python bench/orion.py --layers lenet

Each layer is a network of its own: encrypt, evaluate, decrypt, with N the smallest 128-bit ring
that holds the layer. The answer is approximate; rotation keys stay at the server and are not
counted here. Prints one JSON object per layer and one for the sum.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# This file would shadow the package it measures.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parent]

LENET: list[tuple[Any, ...]] = [
    ("conv", 3, 6, 5, 32), ("conv", 6, 16, 5, 14), ("linear", 400, 120), ("linear", 120, 84),
    ("linear", 84, 10),
]  # fmt: skip
LAYERS = {"lenet": LENET, "linear": [("linear", 400, 120), ("linear", 768, 768)]}
SMALL = {"LogN": 12, "LogQ": [40, 28], "LogP": [40], "LogScale": 28}
LARGE = {"LogN": 13, "LogQ": [55, 40], "LogP": [60], "LogScale": 40}


def measure(layer: tuple[Any, ...], runs: int) -> dict[str, Any]:
    import orion
    import orion.nn as on
    import torch

    class Net(on.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            if layer[0] == "conv":
                self.layer = on.Conv2d(layer[1], layer[2], layer[3])
            else:
                self.layer = on.Linear(layer[1], layer[2])

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    shape = (1, layer[1], layer[4], layer[4]) if layer[0] == "conv" else (1, layer[1])
    outputs = layer[2] * (layer[4] - layer[3] + 1) ** 2 if layer[0] == "conv" else layer[2]
    small = max(int(np.prod(shape)), outputs) <= 2048
    config = {
        "ckks_params": {**(SMALL if small else LARGE), "H": 192, "RingType": "Standard"},
        "orion": {"margin": 2, "embedding_method": "hybrid", "backend": "lattigo",
                  "fuse_modules": True, "debug": False, "io_mode": "none"},
    }  # fmt: skip
    torch.manual_seed(1)
    with contextlib.redirect_stdout(sys.stderr):
        orion.init_scheme(config)
        net = Net()
        net.eval()
        x = torch.rand(shape)
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
    if layer[0] == "conv":  # the rows and columns that a valid convolution has not
        made = made.reshape(1, layer[2], layer[4], -1)[
            ..., : expected.shape[2], : expected.shape[3]
        ]
    error = float((made.reshape(-1) - expected.reshape(-1)).abs().max())
    orion.delete_scheme()
    return {
        "peer": "orion 1.0.2", "layer": list(layer), "log_n": config["ckks_params"]["LogN"],
        "latency_ms_median": float(np.median(times)), "max_error": error,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", choices=sorted(LAYERS), default="lenet")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs: expected >= 1")
    if importlib.util.find_spec("orion") is None:
        parser.error("needs orion in an environment of its own: see --help")
    os.environ.setdefault("GOMAXPROCS", "2")
    total = 0.0
    for layer in LAYERS[arguments.layers]:
        figures = measure(layer, arguments.runs)
        total += figures["latency_ms_median"]
        print(json.dumps(figures), flush=True)
    print(json.dumps({"peer": "orion 1.0.2", "layers": arguments.layers, "latency_ms_sum": total}))


if __name__ == "__main__":
    main()
