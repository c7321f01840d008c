"""Send inputs to running servers, protected, and open the answer.

A --target for each server that clients call: two, party 0 and party 1, under secret sharing, else
one. Twice as many are two cells, pairs of parties with a dealer each, of which the one that is
there and least loaded answers.

The inputs are the array "x" of X.npz or its only array, float[batch, *input shape]; of a model with
several named inputs, an array of each name. Named outputs are printed and saved by name, an unnamed
one as y.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secure_quant_cli.console import Progress

__all__ = ["HELP", "configure", "run", "targets_of"]

HELP = "run encrypted inference against servers"

LONG_S = 2.0
EACH_S = (1e-9, 3e-7, 5e-3)
"""Of a product, a lookup and an op of the longest chain, roughly, whatever the engine."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from secure_quant.engines import engines
    from secure_quant_cli.tls_options import add_tls_options, add_token_option

    parser.add_argument("--engine", choices=[each.name for each in engines()], required=True)
    parser.add_argument(
        "--target", action="append", required=True, metavar="HOST:PORT",
        help="where the server listens; if there are several, each, or all with commas between",
    )  # fmt: skip
    parser.add_argument("--input", type=Path, required=True, metavar="X.npz")
    parser.add_argument("--out", type=Path, metavar="Y.npz",
                        help="save the answer as array y, or the outputs by name")  # fmt: skip
    parser.add_argument("--model-hash", metavar="HEX", help="refuse any other model")
    parser.add_argument("--integers", action="store_true",
                        help="the input is int8 and the answer stays in integers, both packed "
                             "where there are several")  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS",
        help="for everything (default: 30, or what the model's work may take)",
    )  # fmt: skip
    add_token_option(parser)
    parser.add_argument("--json", action="store_true")
    add_tls_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print or save the answer."""
    from secure_quant_cli.arrays import read_inputs, readable, samples_of, write_arrays
    from secure_quant_cli.checks import can_write, durations, model_hash
    from secure_quant_cli.console import print_json, progress, warn

    durations(arguments, "timeout")
    model_hash("--model-hash", arguments.model_hash)
    if arguments.out is not None:
        can_write("--out", arguments.out)
    readable(arguments.input)  # before a server is asked for anything
    with _client(arguments) as client:
        if arguments.model_hash is None:
            warn("no --model-hash: the servers choose the model that answers")
        x = read_inputs(arguments.input, _names(arguments, client))
        with progress(f"inferring {samples_of(x)} samples") as line:
            infer = client.infer_int8_with_stats if arguments.integers else client.infer_with_stats
            told = {"progress": _shown(line)} if _long(client, samples_of(x)) else {}
            y, spent = infer(x, timeout=arguments.timeout, **told)
    stats = stats_dict(spent)
    if arguments.out is not None:
        write_arrays(arguments.out, y if isinstance(y, dict) else {"y": y})
    if arguments.json:
        print_json({"y": y, "stats": stats})
        return 0
    if arguments.out is None:
        _print(y)
    return 0


def _long(client: Any, samples: int) -> bool:
    """Whether an answer is so far away that whoever sits at a terminal wants to see it come."""
    graph = getattr(client, "graph", None)  # an approximate engine has none, and is one step
    if graph is None or not sys.stderr.isatty():
        return False
    from secure_quant.ir.effort import effort

    return samples * effort(graph).seconds(*EACH_S) > LONG_S


def _shown(line: Progress) -> Callable[[Any], None]:
    return lambda told: line.share(told.fraction, told.stage)


def _names(arguments: argparse.Namespace, client: Any) -> list[str] | None:
    """Of the model's inputs, None where it takes one array."""
    graph = getattr(client, "graph", None)  # an approximate engine has none
    if graph is None or arguments.integers or not graph.has_ports:
        return None
    return [port.name for port in graph.input_ports]


def _print(y: Any) -> None:
    for name, array in y.items() if isinstance(y, dict) else (("", y),):
        if name:
            print(f"{name}:")
        for row in array.reshape(len(array), -1):
            print(" ".join(f"{value:.6g}" for value in row))


def stats_dict(stats: Any) -> dict[str, Any]:
    """What an inference cost, by name."""
    from dataclasses import asdict

    return asdict(stats)


def targets_of(arguments: argparse.Namespace) -> list[str]:
    """Of the engine's servers that clients call, in their order, cell after cell. Raises
    ConfigError."""
    from secure_quant.engines import find
    from secure_quant_cli.checks import address

    targets = [each for target in arguments.target for each in target.split(",")]
    find(arguments.engine).cells_of(targets)
    for target in targets:
        address("--target", target)
    return targets


def _client(arguments: argparse.Namespace) -> Any:
    from secure_quant.engines import find
    from secure_quant.errors import ConfigError
    from secure_quant_cli.tls_options import tls_from, token_from

    engine, targets = find(arguments.engine), targets_of(arguments)
    if arguments.integers and not engine.exact:
        got = f"--engine {engine.name}, which is approximate"
        raise ConfigError("--integers", got=got, expected="an exact engine")
    return engine.connect(
        targets, tls=tls_from(arguments, "client"), expected_hash=arguments.model_hash,
        token=token_from(arguments),
    )  # fmt: skip
