"""Linear layers under our homomorphic encryption and under Orion, in turns on one machine.

    python bench/linear_layers.py --orion-python orion-env/bin/python --layers resnet20

Ours is `secure-quant bench --engine he` on a model of that layer alone: a server process, mutual
TLS, the client encrypts, sends and decrypts, every integer compared with the reference. Orion
(`bench/orion.py`, which says how to install it) is one process without a network, its answer
approximate. Both have the two halves of client and server in the time. Weights are random. One
table, each shape once; the sums count it as often as the network has it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from arguments import last_object, parser, positive, run
from orion import LAYERS, Layer

from secure_quant.errors import InternalError
from secure_quant.ir import save
from secure_quant.quantizer import quantize
from secure_quant_cli.console import human_bytes, milliseconds

FOLDER = Path(__file__).resolve().parent
HEAD = (
    "layer", "in the network", "ours, online", "in a row", "up", "down", "mismatches", "Orion",
    "ring", "times ours in a row", "its error",
)  # fmt: skip


def make(layer: Layer, path: Path) -> None:
    """The layer as a model file."""
    module: torch.nn.Module = torch.nn.Linear(layer.reads, layer.makes)
    shape: tuple[int, ...] = (64, layer.reads)
    if layer.kernel:
        told = (layer.reads, layer.makes, layer.kernel, layer.stride, layer.padding)
        module, shape = torch.nn.Conv2d(*told), (8, layer.reads, layer.size, layer.size)
    save(quantize(module.eval(), torch.rand(shape)), path)


def ours_of(layer: Layer, runs: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "layer.sq"
        make(layer, path)
        bench = ["bench", "--engine", "he", "--model", str(path), "--seconds", "0", "--json"]
        return last_object([sys.executable, "-m", "secure_quant_cli", *bench, *runs])


def theirs_of(python: str, layers: str, at: int, runs: list[str]) -> dict[str, Any] | None:
    """Orion's figures of one layer; None if it cannot hold it, whose reason is on stderr."""
    script = [str(FOLDER / "orion.py"), "--layers", layers, "--only", str(at)]
    try:
        return last_object([python, *script, *runs], "layer")
    except InternalError as error:
        print(f"error: {error}", file=sys.stderr)
        return None


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--orion-python", required=True, metavar="FILE", help="with Orion installed")
    line.add_argument("--layers", choices=sorted(LAYERS), default="resnet20")
    line.add_argument("--runs", type=positive, default=10, help="timed inferences of either")
    arguments = line.parse_args()
    torch.manual_seed(0)
    told = ["--runs", str(arguments.runs)]
    sums, held, wrong = [0.0, 0.0, 0.0], 0, 0
    print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}\n")
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    for at, layer in enumerate(LAYERS[arguments.layers]):
        ours = ours_of(layer, told)
        theirs = theirs_of(arguments.orion_python, arguments.layers, at, told)
        online, row = ours["latency_ms_median"], ours["in_a_row_ms_median"]
        wrong += ours["mismatches"]
        compared = ["cannot hold it", "", "", ""]
        if theirs is not None:
            took = theirs["latency_ms_median"]
            error = f"{theirs['max_error']:.1g} of {theirs['max_output']:.2g}"
            compared = [milliseconds(took), f"2^{theirs['log_n']}", f"{took / row:.1f}", error]
            held += layer.count
            for i, each in enumerate((online, row, took)):
                sums[i] += layer.count * each
        print("| " + " | ".join((
            str(layer), str(layer.count), milliseconds(online), milliseconds(row),
            human_bytes(ours["bytes_up"]), human_bytes(ours["bytes_down"]),
            str(ours["mismatches"]), *compared,
        )) + " |", flush=True)  # fmt: skip
    if held:
        online, row, took = sums
        print(f"| all that both hold | {held} | {milliseconds(online)} | {milliseconds(row)} | | "
              f"| {wrong} | {milliseconds(took)} | | {took / row:.1f} | |")  # fmt: skip
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    run(main)
