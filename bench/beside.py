"""Ours and SecretFlow SPU on the same architectures, in turns on one machine, in one table.

    python -m venv spu-env && spu-env/bin/pip install spu==0.9.5
    python bench/beside.py --spu-python spu-env/bin/python --models mlp lenet transformer --turns 3
    python bench/beside.py --spu-python spu-env/bin/python --models resnet20 resnet18 bert \\
        --peers semi2k --runs 3 --peer-runs 1

Ours are `secure-quant bench`: every role a process of its own, mutual TLS, every integer compared
with the reference. *Online* is one call after a rest in which what can be made ahead is made, *in a
row* includes everything. SPU is `bench/spu.py`: plain TCP, what it computes compared with jax.
semi2k, aby3 stand beside secret sharing, cheetah beside the one host without a dealer. Of semi2k
each party is bound to half of the cores as ours are; semi2k-free: wherever the system puts it;
semi2k-puma: with PUMA's coarser GELU and softmax. One host and its client have half of the cores
each too; cheetah's parties run wherever the system puts them, which is no slower for them.

bert is --layers encoder layers of BERT-base on 128 embedded tokens, resnet18 torchvision's at 224,
made by `bench/large.py` unless --work has their files. Medians over the turns of each turn's
median; if there are several turns, the least and the most in brackets.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import last_object, parser, positive, run

from secure_quant_cli.console import milliseconds

FOLDER = Path(__file__).resolve().parent
MODELS = ("linear", "mlp", "lenet", "transformer", "resnet20", "resnet18", "bert")
GELU = ("transformer", "bert")


@dataclass(frozen=True)
class Peer:
    """Beside which of our engines, and what tells `bench/spu.py`."""

    engine: str
    told: tuple[str, ...]


PEERS = {
    "semi2k": Peer("mpc", ("--protocol", "SEMI2K", "--bound")),
    "semi2k-free": Peer("mpc", ("--protocol", "SEMI2K")),
    "semi2k-puma": Peer("mpc", ("--protocol", "SEMI2K", "--bound", "--puma")),
    "aby3": Peer("mpc", ("--protocol", "ABY3")),
    "cheetah": Peer("onehost", ("--protocol", "CHEETAH")),
}
Figures = dict[str, Any]


@dataclass
class Seen:
    """Figures of each turn, by engine of ours and by peer."""

    ours: dict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))
    peers: dict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))


def our_model(name: str, layers: int, work: Path) -> str:
    """What `secure-quant bench` calls it: a file that is made if it is not there."""
    if name not in ("resnet18", "bert"):
        return "linear:8,32" if name == "linear" else name
    path = work / (f"bert{layers}.sq" if name == "bert" else f"{name}.sq")
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        more = ["--layers", str(layers)] if name == "bert" else []
        command = [sys.executable, str(FOLDER / "large.py"), name, *more, "--out", str(path)]
        subprocess.run(command, check=True)  # noqa: S603 - our own script
    return str(path)


def turn(name: str, arguments: Any, seen: Seen) -> None:
    """Every peer of the choice once, and right before it the engine of ours that it is beside."""
    model = our_model(name, arguments.layers, arguments.work)
    before = None
    for each in arguments.peers:
        peer = PEERS[each]
        if "--puma" in peer.told and name not in GELU:
            continue
        if peer.engine != before:
            ours = [sys.executable, "-m", "secure_quant_cli", "bench", "--json", "--seconds", "0"]
            ours += ["--model", model, "--engine", peer.engine, "--runs", str(arguments.runs)]
            seen.ours[peer.engine].append(last_object(ours))
            before = peer.engine
        told = ["--model", name, "--layers", str(arguments.layers)]
        told += ["--runs", str(arguments.peer_runs), *peer.told]
        command = [arguments.spu_python, str(FOLDER / "spu.py"), *told]
        seen.peers[each].append(last_object(command))


def spread(made: list[Figures], name: str) -> tuple[float, str]:
    """(median over the turns, the same as text)."""
    values = [float(each[name]) for each in made]
    middle = statistics.median(values)
    text = milliseconds(middle)
    if len(values) > 1:
        text += f" ({min(values):.1f} to {max(values):.1f})"
    return middle, text


def rows(name: str, seen: Seen) -> list[list[str]]:
    """One line a peer."""
    made = []
    for each, figures in seen.peers.items():
        ours = seen.ours[PEERS[each].engine]
        online, online_text = spread(ours, "latency_ms_median")
        row, row_text = spread(ours, "in_a_row_ms_median")
        theirs, text = spread(figures, "latency_ms_median")
        wrong = sum(turn["mismatches"] for turn in ours)
        error = max(turn["max_error"] for turn in figures)
        largest = figures[0]["max_output"]
        made.append([
            name, PEERS[each].engine, online_text, row_text, str(wrong), each, text,
            f"{theirs / online:.1f}", f"{theirs / row:.1f}", f"{error:.1g} of {largest:.2g}",
        ])  # fmt: skip
    return made


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--spu-python", required=True, metavar="FILE", help="with spu installed")
    line.add_argument(
        "--models", choices=MODELS, nargs="+", default=["mlp", "lenet", "transformer"]
    )
    line.add_argument("--peers", choices=tuple(PEERS), nargs="+", default=["semi2k", "cheetah"])
    line.add_argument("--turns", type=positive, default=1)
    line.add_argument("--runs", type=positive, default=30, help="timed inferences of ours a turn")
    line.add_argument(
        "--peer-runs", type=positive, default=5, help="timed of SPU's, after one more"
    )
    line.add_argument("--layers", type=positive, default=1, help="of bert")
    line.add_argument("--work", type=Path, default=Path("beside-out"), metavar="DIR")
    arguments = line.parse_args()
    head = (
        "model", "ours", "online", "in a row", "mismatches", "SPU", "one call",
        "times our online", "times ours in a row", "its error",
    )  # fmt: skip
    print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}\n")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    wrong = 0
    for name in arguments.models:
        seen = Seen()
        for _ in range(arguments.turns):
            turn(name, arguments, seen)
        for row in rows(name, seen):
            print("| " + " | ".join(row) + " |", flush=True)
        wrong += sum(each["mismatches"] for made in seen.ours.values() for each in made)
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    run(main)
