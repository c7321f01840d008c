"""What the quantizer takes. With --ops, models of one operator each (tests/interop/operators.py),
as people write them, against every check there is: the user's own module, torch's simulation of
the rounding, and onnxruntime to the last bit.

    python bench/model_coverage.py --ops                           all of them, about two minutes
    python bench/model_coverage.py --ops --only recurrent GRUCell  a family, or rows by name

Exit status 1 if a model is wrong: taken though it computes something else, or refused by an error
without a name.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from arguments import parser, run

if TYPE_CHECKING:
    from fuzz.judge import Verdict
    from interop.operators import Row

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--ops", action="store_true", required=True)
    line.add_argument("--only", nargs="+", default=())
    arguments = line.parse_args()
    return operators(set(arguments.only))


def operators(only: set[str]) -> int:
    """One line for each model of one operator, and a table by family."""
    import torch

    from interop.operators import REFUSED, ROWS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts: dict[str, Counter[str]] = {}
    wrong = 0
    for row in (*ROWS, *REFUSED):
        if only and not only & {row.family, row.name}:
            continue
        verdict = judged(row)
        wrong += verdict.kind == "wrong"
        counts.setdefault(row.family, Counter()).update([verdict.kind])
        print(f"{row.family:20} {row.name:32} {verdict.kind:8} {told(verdict)}", flush=True)
    print(f"\n{'family':20} {'models':>7} {'right':>6} {'refused by name':>16} {'wrong':>6}")
    for family, found in (*counts.items(), ("in all", sum(counts.values(), Counter()))):
        kinds = (found["taken"], found["refused"], found["wrong"])
        print(f"{family:20} {sum(kinds):7} {kinds[0]:6} {kinds[1]:16} {kinds[2]:6}")
    return 1 if wrong else 0


def judged(row: Row) -> Verdict:
    """The verdict on a row's model, with its own random weights."""
    import torch

    from fuzz.judge import judge_module
    from interop.operators import samples

    torch.manual_seed(0)
    return judge_module(row.make().eval(), samples(row))


def told(verdict: Verdict) -> str:
    if verdict.kind != "taken":
        return verdict.why
    return f"error {verdict.error:.2g}{', with a warning' if verdict.warned else ''}"


if __name__ == "__main__":
    run(main)
