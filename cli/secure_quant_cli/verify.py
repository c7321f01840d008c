"""Run all executors side by side in this process and compare every integer.

reference  plaintext, the truth
mpc        both parties and the dealer; the output integers are compared
he         client and server; every layer's integers are compared

With --float, the reference is also compared with the float model, and with labels "y" in the input
file accuracies are shown. The exit status is 0 only if everything agrees to the last bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secure_quant.ir import Graph

__all__ = ["HELP", "configure", "run"]

HELP = "all executors side by side, layer by layer"

ENGINES = ("reference", "mpc", "he")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="model.sq")
    parser.add_argument("--input", type=Path, required=True, metavar="X.npz")
    parser.add_argument("--engines", default="reference,mpc,he", metavar="LIST",
                        help="comma-separated, from: reference, mpc, he")  # fmt: skip
    parser.add_argument("--float", metavar="MODEL.py:FACTORY", help="the float model")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N samples only")
    parser.add_argument("--batch", type=int, default=8, help="samples per encrypted inference")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 0 if all integers agree, 1 if one differs."""
    from secure_quant.errors import ConfigError, ValueOutOfRange
    from secure_quant.ir import load
    from secure_quant_cli.arrays import read_array, read_labels
    from secure_quant_cli.console import print_json

    engines = tuple(arguments.engines.split(","))
    if not set(engines) <= set(ENGINES):
        raise ConfigError("--engines", got=arguments.engines, expected=",".join(ENGINES))
    for name in ("batch", "limit"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueOutOfRange(f"--{name}", got=getattr(arguments, name), expected=">= 1")
    graph = load(arguments.model)
    x = read_array(arguments.input)[: arguments.limit]
    labels = read_labels(arguments.input)
    report = compare(graph, x, engines, arguments.batch)
    report |= _floats(arguments.float, graph, x, None if labels is None else labels[: len(x)])
    if arguments.json:
        print_json(report)
    else:
        _show(report)
    return 0 if report["bit_exact"] else 1


def compare(graph: Graph, x: NDArray[Any], engines: tuple[str, ...], batch: int) -> dict[str, Any]:
    """Per engine and layer: integers compared and integers that differ from the reference."""
    from secure_quant import reference
    from secure_quant_cli.console import progress
    from secure_quant_cli.inprocess import he_engine, mpc_engine

    q = reference.quantize_input(graph, x)
    report: dict[str, Any] = {"model": graph.hash, "samples": len(q), "engines": {}}
    wrong = 0
    for engine in engines:
        if engine == "reference":
            continue
        layers: dict[str, dict[str, int]] = {}
        with progress(f"{engine} on {len(q)} samples") as line:
            line.note("planning")
            execute = (mpc_engine if engine == "mpc" else he_engine)(graph)
            for start in range(0, len(q), batch):
                part = q[start : start + batch]
                truth = reference.trace(graph, part)
                del truth[graph.input.name]  # the client's own
                _count(layers, truth, execute(part).values)
                line.note(f"{start + len(part)}/{len(q)}")
        report["engines"][engine] = {
            "layers": layers,
            "compared": sum(layer["compared"] for layer in layers.values()),
            "mismatches": sum(layer["mismatches"] for layer in layers.values()),
        }
        wrong += report["engines"][engine]["mismatches"]
    report["bit_exact"] = wrong == 0
    return report


def _count(
    layers: dict[str, dict[str, int]],
    truth: dict[str, NDArray[np.int64]],
    made: dict[str, NDArray[np.int64]],
) -> None:
    for name in (each for each in truth if each in made):
        layer = layers.setdefault(name, {"compared": 0, "mismatches": 0})
        layer["compared"] += truth[name].size
        layer["mismatches"] += mismatches(truth[name], made[name])


def mismatches(expected: NDArray[Any], got: NDArray[Any]) -> int:
    """Integers that differ; all of them if the shapes do."""
    if expected.shape != got.shape:
        return int(expected.size)
    return int((expected != got).sum())


def _floats(
    factory: str | None, graph: Graph, x: NDArray[Any], labels: NDArray[Any] | None
) -> dict[str, Any]:
    import numpy as np

    from secure_quant import reference

    made: dict[str, Any] = {}
    y = reference.run(graph, x)
    if labels is not None:
        made["accuracy_int8"] = accuracy(y, labels)
    if factory is None:
        return made
    import torch

    from secure_quant_cli.owner_code import build_model

    with torch.no_grad():
        floats = build_model(factory)(torch.as_tensor(np.asarray(x, np.float32))).numpy()
    error = np.abs(floats.astype(np.float64) - y)
    made["float_error_max"], made["float_error_mean"] = float(error.max()), float(error.mean())
    if labels is not None:
        made["accuracy_float"] = accuracy(floats, labels)
    return made


def accuracy(y: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of samples whose largest output is at the label's place."""
    return float((y.reshape(len(y), -1).argmax(-1) == labels).mean())


def _show(report: dict[str, Any]) -> None:
    from secure_quant_cli.console import table

    names: dict[str, None] = {}
    for engine in report["engines"].values():
        names |= dict.fromkeys(engine["layers"])
    engines = list(report["engines"])
    rows = []
    for name in names:
        row: list[str] = [name]
        for engine in engines:
            layer = report["engines"][engine]["layers"].get(name)
            row.append(f"{layer['mismatches']} of {layer['compared']}" if layer else "not opened")
        rows.append(row)
    print(f"model {report['model']}, {report['samples']} samples\n")
    print(table(("integers that differ", *engines), rows))
    print()
    for key in ("accuracy_float", "accuracy_int8", "float_error_max", "float_error_mean"):
        if key in report:
            print(f"{key.replace('_', ' ')}: {report[key]:.6g}")
    print(f"bit-exact: {'yes' if report['bit_exact'] else 'NO'}")
