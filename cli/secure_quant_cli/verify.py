"""Run all executors side by side in this process and compare every integer.

reference  plaintext, the truth
mpc        both parties and the dealer; the output integers are compared
he         client and server; every layer's integers are compared
onehost    client and host; the output integers are compared
onnx       onnxruntime on the exported model; every layer's integers are compared

The inputs are the array "x" of X.npz or its only array; of a model with several named inputs, an
array of each name. With --float, each layer is also compared with the float model, and with labels
"y" in the input file accuracies are shown, of the first output where there are several. --html
writes it all as one page with plots, which needs the extra "report"; with --float it also shows
what each weight scheme would give on these inputs.
The exit status is 0 only if everything agrees to the last bit. A leveled model is approximate: its
largest error is shown beside the bound that its plan proves, and must not exceed it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secure_quant.ir import Graph
    from secure_quant.quantizer.floats import FloatValues

__all__ = ["HELP", "configure", "run"]

HELP = "all executors side by side, layer by layer"

FLOAT_SAMPLES = 64
"""Samples with which the float model is captured."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="model.sq")
    parser.add_argument("--input", type=Path, required=True, metavar="X.npz")
    parser.add_argument("--engines", metavar="LIST",
                        help=f"comma-separated, from: {', '.join(_packages())}; all that are "
                             "installed if left out")  # fmt: skip
    from secure_quant_cli.owner_code import MODEL_HELP, add_weights

    parser.add_argument("--float", metavar="MODEL", help=MODEL_HELP)
    add_weights(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N samples only")
    parser.add_argument("--batch", type=int, default=8, help="samples per encrypted inference")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 0 if all integers agree, 1 if one differs."""
    from secure_quant.errors import ConfigError, ShapeMismatch
    from secure_quant.ir import load
    from secure_quant_cli.arrays import part_of, read_inputs, read_labels, samples_of
    from secure_quant_cli.checks import can_write, counts
    from secure_quant_cli.comparison import compare
    from secure_quant_cli.console import print_json
    from secure_quant_cli.engines import own_models, owner

    named = arguments.engines is not None
    engines = tuple(arguments.engines.split(",")) if named else _installed()
    if not set(engines) <= set(_packages()):
        raise ConfigError("--engines", got=arguments.engines, expected=",".join(_packages()))
    counts(arguments, "batch", "limit")
    if arguments.html is not None:
        _need_matplotlib()
        can_write("--html", arguments.html)
    own = owner(arguments.model)
    if own is not None:
        return own_models(own).verify(arguments)
    graph = load(arguments.model)
    names = [port.name for port in graph.input_ports]
    x = part_of(
        read_inputs(arguments.input, names if graph.has_ports else None), 0, arguments.limit
    )
    labels = None if "y" in names else read_labels(arguments.input)
    if labels is not None:
        labels = labels[: arguments.limit]
        if labels.shape != (samples_of(x),):
            raise ShapeMismatch("labels y", got=labels.shape, expected=(samples_of(x),))
    model, floats = _float_model(arguments, graph, x)
    found = compare(
        graph, x, engines, arguments.batch,
        floats=floats, labels=labels, skip_refused=not named,
    )  # fmt: skip
    if arguments.html is not None:
        from secure_quant_cli.report import scheme_study, write_page

        if model is not None:
            found.report["schemes"] = scheme_study(model, x, labels)
        write_page(found, graph, arguments.html)
    if arguments.json:
        print_json(found.report)
    else:
        _show(found.report)
    if found.report["bit_exact"] is None:  # 0 if nothing else was asked for
        return 0 if named else 1
    return 0 if found.report["bit_exact"] else 1


def _packages() -> dict[str, str]:
    """Executor -> the package without which it does not run."""
    from secure_quant.engines import engines

    exact = {each.name: each.package for each in engines() if each.exact}
    return {"reference": "numpy", **exact, "onnx": "onnxruntime"}


def _installed() -> tuple[str, ...]:
    from importlib.util import find_spec

    return tuple(engine for engine, package in _packages().items() if find_spec(package))


def _need_matplotlib() -> None:
    from importlib.util import find_spec

    from secure_quant.errors import ConfigError
    from secure_quant_cli.extras import how_to_install

    if find_spec("matplotlib") is None:
        raise ConfigError("--html", got="no matplotlib", expected=how_to_install("report"))


def _float_model(
    arguments: argparse.Namespace, graph: Graph, x: Any
) -> tuple[Any, FloatValues | None]:
    """The owner's model, and its values layer by layer."""
    if arguments.float is None:
        return None, None
    from secure_quant.quantizer.floats import float_values
    from secure_quant_cli.arrays import part_of
    from secure_quant_cli.console import progress
    from secure_quant_cli.owner_code import owner_model

    some = part_of(x, 0, FLOAT_SAMPLES)
    model = owner_model(arguments.float, arguments.weights, some)
    with progress("capturing the float model"):
        return model, float_values(model, graph, some)


def _show(report: dict[str, Any]) -> None:
    from secure_quant_cli.console import folded, paint, table

    print(f"model   {report['model']}\nsamples {report['samples']}\n")
    header, rows = _layer_rows(report)
    print(table(header, rows, left=2))
    print()
    for engine, plan in report["plans"].items():
        print(folded(f"{engine}, planned for one sample: {_costs(plan)}"))
    for engine, reason in report["refused"].items():
        print(folded(f"{engine} refuses this model: {reason}"))
    for key in ("accuracy_float", "accuracy_int8", "float_error_max", "float_error_mean"):
        if key in report:
            ends = report.get(f"{key}_interval")
            beside = f" (95 % interval {ends[0]:.4g} to {ends[1]:.4g})" if ends else ""
            print(f"{key.replace('_', ' ')}: {report[key]:.6g}{beside}")
    for engine, found in report["engines"].items():
        if found["first_difference"] is not None:
            print(f"first layer that differs under {engine}: {found['first_difference']}")
    verdicts = {
        True: paint("yes", "green"), False: paint("NO", "red"), None: "no engine was compared"
    }  # fmt: skip
    print(f"bit-exact: {verdicts[report['bit_exact']]}")


def _layer_rows(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what differs under each engine, float error, planned traffic, time."""
    from secure_quant_cli.comparison import cost_cells
    from secure_quant_cli.engines import exact

    engines = report["engines"]
    floats = any("float_error_max" in layer for layer in report["layers"])
    header = ["layer", "op", *(f"{engine} differs" for engine in engines)]
    header += ["float error, mean", "max"] if floats else []
    header += [f"{engine} {title}" for engine in report["plans"] for title in exact(engine).columns]
    rows = []
    for layer in report["layers"]:
        row = [layer["name"], layer["op"]]
        for engine in engines.values():
            seen = engine["layers"].get(layer["name"])
            row.append(f"{seen['mismatches']} of {seen['compared']}" if seen else "not opened")
        if floats:
            row += [
                f"{layer[key]:.2g}" if key in layer else "–"
                for key in ("float_error_mean", "float_error_max")
            ]
        for engine in report["plans"]:
            row += cost_cells(layer, engine)
        rows.append(row)
    return header, rows


def _costs(plan: dict[str, int]) -> str:
    from secure_quant_cli.console import human_bytes

    return ", ".join(
        f"{key.replace('_', ' ')} {human_bytes(value) if 'bytes' in key else value}"
        for key, value in plan.items()
    )
