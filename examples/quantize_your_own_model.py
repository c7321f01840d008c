"""Your own torch module -> integers -> the same integers under encryption.

Everything happens in this process: no servers, no certificates. Replace ``build`` by your module
and ``x`` by some hundred of your own inputs.

    python examples/quantize_your_own_model.py [--samples 4] [--out model.sq]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

import secure_quant as sq
from secure_quant.engines import find
from secure_quant_cli.engines import in_process


def build() -> nn.Module:
    """A small image classifier. Any module that maps one tensor to one tensor will do, as long as
    its layers are in the table of docs/quantization.md."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * 3 * 3, 16), nn.GELU(), nn.Linear(16, 5),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4, help="inputs to answer under encryption")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="keep the model")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = build().eval()
    x = torch.rand(256, 1, 14, 14)  # typical inputs: they decide the ranges of the activations

    # One call makes the integer graph: int8 weights, int8 activations, every sum proven to fit.
    graph = sq.quantize(model, calibration=x)
    print(f"{len(graph.nodes)} integer steps, model {graph.hash[:12]}:")
    for node in graph.nodes:
        print(f"  {node.name:12} {type(node).__name__}")
    if arguments.out is not None:
        sq.save(graph, arguments.out)  # `secure-quant split` and `serve` take it from here
        print(f"written to {arguments.out}")

    # Float in, float out; in between the reference computes with integers alone.
    sample = x[: arguments.samples]
    with torch.no_grad():
        floats = model(sample).numpy()
    error = np.abs(sq.reference.run(graph, sample.numpy()) - floats).max()
    largest = abs(floats).max()
    print(f"largest error of int8 against float: {error:.4f}, outputs up to {largest:.4f}")

    # What the engines are compared with: the integers at the output.
    q = sq.reference.quantize_input(graph, sample.numpy())
    truth = sq.reference.run_int(graph, q)

    # Each engine with all of its roles in this process; its servers see nothing but noise.
    exact = True
    for name in ("mpc", "he", "onehost"):
        made = in_process(name, graph)(q).values[graph.output.name]
        differing = int((made != truth).sum())
        exact &= differing == 0
        title = find(name).title
        print(f"{title}: {differing} of {truth.size} output integers differ from plaintext")
    print(f"bit-exact: {'yes' if exact else 'NO'}")
    return 0 if exact else 1


if __name__ == "__main__":
    raise SystemExit(main())
