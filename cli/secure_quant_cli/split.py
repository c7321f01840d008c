"""Cut a model file into one bundle per role, each with the least that the role needs.

mpc: party0.sqb party1.sqb dealer.sqb client.sqb    he, he-leveled: server.sqb client.sqb
Bundles of parties and of the HE server hold secret material: send each to its own host only.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from secure_quant.ir import Graph

__all__ = [
    "HELP", "OBJECTIVES", "Objective", "Tier", "configure", "run", "split_for", "write_bundles",
]  # fmt: skip

Objective = Literal["latency", "balanced", "traffic"]
Tier = Literal["T1", "T1-strict"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)

HELP = "model file -> one bundle per role"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="model.sq")
    parser.add_argument("--engine", choices=("mpc", "he", "he-leveled"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--objective", choices=OBJECTIVES,
        help="what the planner spares: time or bytes; for mpc also balanced, which is its default",
    )  # fmt: skip
    parser.add_argument(
        "--tier", choices=("T1", "T1-strict"),
        help="he only: how well responses hide the weights (see SECURITY.md); T1 if left out",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the bundles."""
    from secure_quant.errors import ConfigError
    from secure_quant.ir import load
    from secure_quant_cli.console import human_bytes, progress

    if arguments.engine != "he" and arguments.tier is not None:
        raise ConfigError("--tier", got=f"--engine {arguments.engine}", expected="--engine he")
    if arguments.engine == "he-leveled" and arguments.objective is not None:
        raise ConfigError("--objective", got="--engine he-leveled", expected="--engine mpc or he")
    other = "server.sqb" if arguments.engine == "mpc" else "party0.sqb"
    if (arguments.out / other).exists():
        raise ConfigError(f"{arguments.out} holds bundles of the other engine; choose another")
    with progress(f"splitting for {arguments.engine}"):
        if arguments.engine == "he-leveled":
            from secure_quant_cli.leveled import split_leveled

            bundles = split_leveled(arguments.model)
        else:
            graph = load(arguments.model)
            bundles = split_for(
                graph, arguments.engine, arguments.objective, arguments.tier or "T1"
            )
    for path in write_bundles(bundles, arguments.out):
        print(f"{path}  {human_bytes(path.stat().st_size)}")
    return 0


def split_for(
    graph: Graph,
    engine: str,
    objective: Objective | None = None,
    tier: Tier = "T1",
) -> dict[str, bytes]:
    """Role -> bundle; the objective None is the engine's own default.

    Raises OpNotSupported where the engine has no exact gate for an op, ConfigError.
    """
    if engine == "mpc":
        from secure_quant.mpc.protocol.bundle import split as split_mpc

        return split_mpc(graph, objective or "balanced")
    from secure_quant.errors import ConfigError
    from secure_quant.he.bundle import split as split_he

    if objective == "balanced":
        raise ConfigError("--objective for he", got=objective, expected="latency or traffic")
    return split_he(graph, objective or "latency", tier)


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
