"""Turn a float torch model into an integer model file.

MODEL.py is executed to call its factory, so it must be your own code. DATA.npz holds
representative inputs, float[samples, *input shape], as the array "x" or its only array. The mode
leveled makes a shallow model, Linear and Square in turn, for one approximate round trip of CKKS.
"""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["HELP", "configure", "run"]

HELP = "float torch model -> integer model file"

MODES = ("static", "weight-only", "qat", "dynamic", "leveled")
SCHEMES = ("uniform", "log", "clip", "kmeans")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL.py:FACTORY", help="the float model")
    parser.add_argument("--calibration", type=Path, required=True, metavar="DATA.npz")
    parser.add_argument("--out", type=Path, required=True, metavar="model.sq")
    parser.add_argument("--mode", choices=MODES, default="static")
    parser.add_argument("--scheme", choices=SCHEMES, default="uniform", help="weight grid")
    parser.add_argument("--json", action="store_true", help="print the sizes as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the model file and say what it holds."""
    from secure_quant.ir import save
    from secure_quant_cli.arrays import read_array
    from secure_quant_cli.console import human_bytes, print_json, progress, ratio
    from secure_quant_cli.models import quantize_shown
    from secure_quant_cli.owner_code import build_model
    from secure_quant_cli.sizes import float_bytes

    if arguments.mode == "leveled":
        from secure_quant_cli.leveled import quantize_run

        return quantize_run(arguments)
    data = read_array(arguments.calibration)
    with progress("importing the float model"):
        model = build_model(arguments.model)
    graph = quantize_shown(model, data, mode=arguments.mode, scheme=arguments.scheme)
    save(graph, arguments.out)
    stored, plain = arguments.out.stat().st_size, float_bytes(graph)
    if arguments.json:
        print_json(
            {"hash": graph.hash, "nodes": len(graph.nodes), "bytes": stored, "float_bytes": plain}
        )
    else:
        share = ratio(stored, plain) if plain else "–"
        print(f"{arguments.out}: {len(graph.nodes)} nodes, {human_bytes(stored)}, "
              f"{share} of {human_bytes(plain)} float32")  # fmt: skip
        print(f"hash {graph.hash}")
    return 0
