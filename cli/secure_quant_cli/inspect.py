"""Show a model file: its layers with shapes, bits and proven bounds, its sizes, and what each
engine would cost for one inference, planned without running anything. Of a leveled model: widths,
parameters, error bound, and the bytes of one round trip.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from secure_quant_cli.split import choices

if TYPE_CHECKING:
    from secure_quant.ir import Graph, Value, ops
    from secure_quant.ir.ports import Port

__all__ = ["HELP", "configure", "describe", "run"]

HELP = "layers, bits, bounds, sizes and planned costs of a model file"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="model.sq")
    parser.add_argument("--batch", type=int, default=1, help="samples per inference in the plan")
    parser.add_argument(
        "--objective", choices=choices("objectives"),
        help="as in split, of the engines that have it; the first of each if left out",
    )  # fmt: skip
    parser.add_argument(
        "--samples-per-client", type=int, metavar="N",
        help="as in split, of the engines whose plans are good for a number of samples",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", action="store_true",
        help="predict what an inference takes, on this machine's cores, which are measured once",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Print the description."""
    from secure_quant.errors import ConfigError
    from secure_quant.ir import load
    from secure_quant_cli.checks import counts
    from secure_quant_cli.console import print_json
    from secure_quant_cli.engines import own_models, owner

    counts(arguments, "batch", "samples_per_client")
    own = owner(arguments.model)
    if own is not None:
        for option in ("objective", "samples_per_client"):
            if getattr(arguments, option) is not None:
                got = f"a model of {own.name}, whose plan has none"
                raise ConfigError(f"--{option.replace('_', '-')}", got=got)
        return own_models(own).inspect(arguments)
    graph = load(arguments.model)
    plans = _plans(graph, arguments.objective, arguments.samples_per_client)
    found = describe(graph, arguments.model.stat().st_size, arguments.batch, plans)
    found["objective"] = arguments.objective
    if arguments.seconds:
        found["seconds"] = _seconds(plans, arguments.batch)
    if arguments.json:
        print_json(found)
    else:
        _show(found)
    return 0


def describe(
    graph: Graph, stored: int, batch: int, plans: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that is shown, as plain values. plans: as ``_plans`` makes them."""
    from secure_quant_cli.sizes import float_bytes

    plans = _plans(graph) if plans is None else plans
    return {
        "hash": graph.hash,
        "bytes": stored,
        "float_bytes": float_bytes(graph),
        "batch": batch,
        "inputs": [_port(port) for port in graph.input_ports],
        "outputs": [_port(port) for port in graph.output_ports],
        "layers": [_layer(node, graph.values[node.name]) for node in graph.nodes],
        "plans": {
            name: plan if isinstance(plan, dict) else _planned(name, plan, batch)
            for name, plan in plans.items()
        },
        "memory": _memory(plans, batch),
        "held": _samples(plans, "held"),
        "samples_per_client": _samples(plans, "budget"),
    }


def _port(port: Port) -> dict[str, Any]:
    """What a caller passes or gets under a name."""
    return {
        "name": port.name,
        "dtype": port.dtype,
        "shape": list(port.asked),
        "rows": port.rows or None,
        "table": ("secret" if port.digits else "public") if port.rows else None,
        "scale": port.value.scale,
        "zero_point": port.value.zero_point,
    }


def _named(port: dict[str, Any]) -> str:
    rows = f" of {port['rows']} {port['table']} rows" if port["rows"] else ""
    return f"{port['name']} {port['dtype']}{port['shape']}{rows}"


def _layer(node: ops.Node, value: Value) -> dict[str, Any]:
    from secure_quant_cli.sizes import parameter_count

    low, high = value.range.lo, value.range.hi
    return {
        "name": node.name,
        "op": type(node).__name__,
        "shape": list(value.shape),
        "bits": 1 + max((~end if end < 0 else end).bit_length() for end in (low, high)),
        "range": [low, high],
        "parameters": parameter_count(node),
    }


def _plans(
    graph: Graph, objective: str | None = None, samples_per_client: int | None = None
) -> dict[str, Any]:
    """Each exact engine's plan, or why there is none, as ``refused``."""
    from secure_quant.engines import find, resolved
    from secure_quant.errors import OpNotSupported
    from secure_quant_cli.engines import exact_names

    made: dict[str, Any] = {}
    told: dict[str, Any] = {} if objective is None else {"objective": objective}
    number = {} if samples_per_client is None else {"calls": samples_per_client}
    for name in exact_names():
        known = find(name).objectives
        if objective is not None and objective not in known:
            others = " or ".join(known) or "none"
            made[name] = {"refused": f"no objective {objective}, but {others}"}
            continue
        try:
            asked = told | (number if find(name).budgeted else {})
            made[name] = resolved(find(name).plan)(graph.public(), **asked)
        except OpNotSupported as error:
            made[name] = {"refused": str(error)}
        except ModuleNotFoundError as error:
            made[name] = {"refused": f"{error.name} is not installed"}
    return made


def _planned(engine: str, plan: Any, batch: int) -> dict[str, Any]:
    """What a plan says."""
    from secure_quant_cli.engines import exact

    cost = plan.cost(batch)
    return {name: getattr(cost, name) for name in exact(engine).summary}


def _seconds(plans: Mapping[str, Any], batch: int) -> dict[str, dict[str, float]]:
    """By engine and network, of engines that have a plan."""
    from secure_quant_cli.console import progress
    from secure_quant_cli.prediction import measured, predicted

    made = {}
    for engine, plan in plans.items():
        if isinstance(plan, dict):
            continue
        with progress(f"computing of {engine}, on this machine"):
            rates = measured(engine)
        made[engine] = predicted(engine, plan, batch, rates)
    return made


def _memory(plans: Mapping[str, Any], batch: int) -> dict[str, dict[str, int]]:
    """By engine and role."""
    from secure_quant_cli.engines import exact

    return {
        engine: exact(engine).memory(plan, batch)
        for engine, plan in plans.items()
        if not isinstance(plan, dict)
    }


def _samples(plans: Mapping[str, Any], of: Literal["held", "budget"]) -> dict[str, dict[str, int]]:
    """What ``Exact.held`` or ``Exact.budget`` says of a plan, by engine."""
    from secure_quant_cli.engines import exact

    made = {}
    for engine, plan in plans.items():
        told = None if isinstance(plan, dict) else getattr(exact(engine), of)
        if told is not None:
            made[engine] = told(plan)
    return made


def _show(found: dict[str, Any]) -> None:
    from secure_quant_cli.console import folded, human_bytes, table

    print(f"hash   {found['hash']}")
    print(f"size   {human_bytes(found['bytes'])}, {human_bytes(found['float_bytes'])} as float32")
    for side in ("inputs", "outputs"):
        print(folded(f"{side:8}{', '.join(map(_named, found[side]))}", hang=8))
    print()
    rows = [
        (
            layer["name"], layer["op"], "×".join(map(str, layer["shape"])), layer["bits"],
            f"{layer['range'][0]} … {layer['range'][1]}", layer["parameters"] or "",
        )
        for layer in found["layers"]
    ]  # fmt: skip
    print(table(("name", "op", "shape", "bits", "proven range", "parameters"), rows, left=3))
    spared = f", objective {found['objective']}" if found["objective"] else ""
    print(f"\nplanned for a batch of {found['batch']}{spared}")
    for engine, plan in found["plans"].items():
        shown = ", ".join(
            f"{key.replace('_', ' ')} {human_bytes(value) if 'bytes' in key else value}"
            for key, value in plan.items()
        )
        print(folded(f"  {engine:8} {shown}", hang=11))
    _show_roles("predicted peak memory, with one lane or worker and default options",
                found["memory"], human_bytes)  # fmt: skip
    _show_roles("samples whose material lies ready, with one lane or pairing and default options",
                found["held"], str)  # fmt: skip
    _show_roles("samples of one client, over all pairings", found["samples_per_client"], str)
    if "seconds" in found:
        _show_seconds(found["seconds"])


def _show_seconds(found: dict[str, dict[str, float]]) -> None:
    from secure_quant_cli.console import table
    from secure_quant_cli.prediction import NETWORKS

    print("\npredicted seconds, with material made ahead: all on this machine, and by network")
    rows = [(engine, *(f"{each:.3g}" for each in made.values())) for engine, made in found.items()]
    print(table(("engine", *NETWORKS), rows))


def _show_roles(title: str, found: dict[str, dict[str, int]], shown: Callable[[int], str]) -> None:
    """A number of each role, by engine."""
    from secure_quant_cli.console import folded

    if not found:
        return
    print(f"\n{title}")
    for engine, roles in found.items():
        told = ", ".join(f"{role} {shown(each)}" for role, each in roles.items())
        print(folded(f"  {engine:8} {told}", hang=11))
