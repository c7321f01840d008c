"""Cut a model file into one bundle per role, each with the least that the role needs.

mpc                      party0.sqb party1.sqb dealer.sqb client.sqb
he, he-leveled, onehost  server.sqb client.sqb

All but client.sqb are secret: send each to its own host only.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from secure_quant.ir import Graph

__all__ = [
    "HELP",
    "check_choices",
    "choices",
    "configure",
    "run",
    "split_for",
    "write_bundles",
]

HELP = "model file -> one bundle per role"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from secure_quant.engines import engines

    spared = "; ".join(
        f"{each.name}: {each.objectives[0]} (if left out), {', '.join(each.objectives[1:])}"
        for each in engines()
        if each.objectives
    )
    hiding = ", ".join(each.name for each in engines() if each.tiers)
    budgeted = ", ".join(each.name for each in engines() if each.budgeted)
    parser.add_argument("model", type=Path, metavar="model.sq")
    parser.add_argument("--engine", choices=[each.name for each in engines()], required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--objective", choices=choices("objectives"), help=f"what the planner spares. {spared}"
    )
    parser.add_argument(
        "--output", default="scores", metavar="POLICY",
        help="what clients learn: scores, argmax (the class alone) or top-K (the K best classes in "
             "order). Under homomorphic encryption clients see the scores all the same",
    )  # fmt: skip
    parser.add_argument(
        "--tier", choices=choices("tiers"),
        help=f"{hiding} only: how well responses hide the weights (see SECURITY.md); the first if "
             "left out",
    )  # fmt: skip
    parser.add_argument(
        "--samples-per-client", type=int, metavar="N",
        help=f"{budgeted} only: how many samples of one client the plan is good for, over all "
             "pairings and restarts; more make messages wider. If left out the first of 2^20, "
             "2^16, 2^12 and 2^10 that rings of two primes hold, else that rings of three do",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")


def choices(field: Literal["objectives", "tiers"]) -> tuple[str, ...]:
    """What any engine knows of it."""
    from secure_quant.engines import engines

    return tuple(dict.fromkeys(word for each in engines() for word in getattr(each, field)))


def check_choices(arguments: argparse.Namespace, *options: str) -> None:
    """That the engine has an objective, tiers and a number of samples where they are given. Raises
    ConfigError."""
    from secure_quant.engines import engines, find
    from secure_quant.errors import ConfigError

    for option in options:
        field = "budgeted" if option == "samples_per_client" else f"{option}s"
        if getattr(arguments, option) is not None and not getattr(find(arguments.engine), field):
            known = " or ".join(each.name for each in engines() if getattr(each, field))
            got = f"--engine {arguments.engine}"
            name = f"--{option.replace('_', '-')}"
            raise ConfigError(name, got=got, expected=f"--engine {known}")


def run(arguments: argparse.Namespace) -> int:
    """Write the bundles."""
    from secure_quant.engines import engines, find
    from secure_quant.errors import ConfigError
    from secure_quant.ir import load
    from secure_quant.ir.policy import with_output
    from secure_quant_cli.checks import counts
    from secure_quant_cli.console import human_bytes, print_json, progress
    from secure_quant_cli.engines import own_models

    check_choices(arguments, "objective", "tier", "samples_per_client")
    counts(arguments, "samples_per_client")
    engine = find(arguments.engine)
    others = frozenset[str]().union(*(each.bundles for each in engines())) - engine.bundles
    if any((arguments.out / f"{other}.sqb").exists() for other in others):
        raise ConfigError(f"{arguments.out} holds bundles of another engine; choose another folder")
    with progress(f"splitting for {engine.name}"):
        read = load if engine.file_format is None else own_models(engine).load
        model = read(arguments.model)
        if arguments.output != "scores":
            if engine.file_format is not None:
                raise ConfigError(
                    "--output", got=arguments.output, expected=f"scores for {engine.name}"
                )
            model = with_output(model, arguments.output)
        bundles = engine.bundles_of(
            model, arguments.objective, arguments.tier, arguments.samples_per_client
        )
    made = write_bundles(bundles, arguments.out)
    if arguments.json:
        sizes = {p.stem: {"path": str(p), "bytes": p.stat().st_size} for p in made}
        found = {"engine": engine.name, "bundles": sizes}
        if engine.file_format is None:
            found |= {"hash": model.hash, "output": arguments.output}
        print_json(found)
        return 0
    for path in made:
        print(f"{path}  {human_bytes(path.stat().st_size)}")
    if arguments.output != "scores":
        print(f"model {model.hash}, which answers {arguments.output}")
        if not engine.answers_alone:
            print(
                f"note: under {engine.title} clients take this step themselves: they see every "
                "score, and the policy hides nothing"
            )
    return 0


def split_for(
    graph: Graph, engine: str, objective: str | None = None, tier: str | None = None,
    output: str = "scores",
) -> dict[str, bytes]:  # fmt: skip
    """Role -> bundle; None is the engine's own default. ``output``: what clients learn.

    Raises OpNotSupported where the engine has no exact gate for an op, ConfigError.
    """
    from secure_quant.engines import find
    from secure_quant.ir.policy import with_output

    return find(engine).bundles_of(with_output(graph, output), objective, tier)


def write_bundles(bundles: Mapping[str, bytes], out: Path) -> list[Path]:
    """``out/ROLE.sqb``, readable by the owner only."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for role, data in sorted(bundles.items()):
        path = out / f"{role}.sqb"
        path.unlink(missing_ok=True)  # the mode below holds for a new file only
        path.touch(mode=0o600)
        path.write_bytes(data)
        paths.append(path)
    return paths
