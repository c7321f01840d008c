"""What the quantizer takes. With --ops, models of one operator each (tests/interop/operators.py),
as people write them, against every check there is: the user's own module, torch's simulation of
the rounding, and onnxruntime to the last bit.

    python bench/model_coverage.py --ops                           all of them, about two minutes
    python bench/model_coverage.py --ops --only recurrent GRUCell  a family, or rows by name

With --families, the models that packages ship (families.py, families_hf.py), with random weights:
taken or refused, equal to onnxruntime or not, how near to float. Results are added to a file of
JSON lines as they come; a run goes on where the last one ended. --all takes every model, not one
an architecture; --thin only one block of each kind in a stage (thinned.py), which says as much
about operators.

    python bench/model_coverage.py --families torchvision timm --results coverage.jsonl
    python bench/model_coverage.py --families timm --only convnext swin_transformer
    python bench/model_coverage.py --tables coverage.jsonl         what is known, as Markdown
    python bench/model_coverage.py --tables coverage.jsonl --into docs/models.md bench/RESULTS.md

Exit status 1 if a model is wrong: taken though it computes something else, or refused by an error
without a name.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arguments import parser, positive, run
from coverage_tables import known, listing, write_into

if TYPE_CHECKING:
    from fuzz.judge import Verdict
    from interop.operators import Row

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def main() -> int:
    line = parser(__doc__)
    what = line.add_mutually_exclusive_group(required=True)
    what.add_argument("--ops", action="store_true")
    what.add_argument("--families", nargs="+", choices=("torchvision", "timm", "transformers"))
    what.add_argument("--tables", type=Path, metavar="FILE")
    line.add_argument("--into", nargs="+", type=Path, metavar="PAGE", default=())
    line.add_argument("--only", nargs="+", default=())
    line.add_argument("--all", action="store_true")
    line.add_argument("--thin", action="store_true")
    line.add_argument("--again", nargs="*", metavar="KIND", default=(),
                      help="kinds of results to make anew: refused, stopped, ...")  # fmt: skip
    line.add_argument("--results", type=Path, metavar="FILE", default=Path("coverage.jsonl"))
    line.add_argument("--seconds", type=positive, default=900, help="for one model")
    line.add_argument("--gigabytes", type=positive, default=10, help="for one model")
    arguments = line.parse_args()
    if arguments.tables:
        return tables(known(arguments.tables), arguments.into)
    if arguments.families:
        return families(arguments)
    return operators(set(arguments.only))


def families(arguments: Any) -> int:
    """A line for each model that is not in the results yet, and the tables."""
    from families import listed
    from family_judge import judged_apart

    import secure_quant.quantizer  # noqa: F401  once, before the processes are forked

    rows = known(arguments.results)
    rows = {key: row for key, row in rows.items() if row["kind"] not in arguments.again}
    into = arguments.results.with_suffix(".one")
    models = [m for family in arguments.families for m in listed(family, arguments.all)]
    if arguments.only:  # in that order
        models = [m for name in arguments.only for m in models if name in (m.group, m.name)]
    for model in models:
        if model.key in rows:
            continue
        row = judged_apart(model, into, arguments.seconds, arguments.gigabytes, thin=arguments.thin)
        rows[model.key] = row
        with arguments.results.open("a") as results:
            results.write(json.dumps(row) + "\n")
        told = row.get("why") or f"cosine {row['cosine']:.4f}"
        print(f"{model.key:60} {row['kind']:8} {row.get('seconds', 0):6} {told[:200]}", flush=True)
    return tables(rows)


def tables(rows: dict[str, Any], pages: Sequence[Path] = ()) -> int:
    """What is known, on stdout or in the marked parts of ``pages``."""
    for page in pages:
        write_into(page, rows)
    if not pages:
        print(f"\n{listing(rows)}")
    return 1 if any(row["kind"] == "wrong" for row in rows.values()) else 0


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
