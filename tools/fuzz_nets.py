#!/usr/bin/env python3
"""Random modules against every check there is (tests/fuzz): none may be wrong in silence.

    python tools/fuzz_nets.py                          2,000 nets; the seed is printed
    python tools/fuzz_nets.py --seed 7000 --count 500  nets 7000 to 7499
    python tools/fuzz_nets.py --net 7123               one net, with its source

Exit status 1 if a net is wrong: taken though it computes something else than its module, or refused
by an error without a name.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.judge import Verdict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


AT_A_TIME = 1000


def _quiet() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def _prepare() -> None:
    """In a process of the pool. Should the search be killed, nothing else ends these: each of them
    holds both ends of the queue that it waits at."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.join,), daemon=True).start()
    _quiet()


def _follow(wait: Callable[[], None]) -> None:
    wait()
    os._exit(1)


def _one(seed: int) -> Verdict:
    from fuzz.judge import judge

    return judge(seed)


def show(seed: int) -> int:
    """The source of one net, and the verdict on it."""
    from fuzz.judge import MODES, judge
    from fuzz.nets import RandomNet

    net = RandomNet(seed)
    print(f"net {seed}, mode {MODES[seed % len(MODES)]}, input {list(net.x.shape)}")
    print(net.module.source)
    print("\n".join(f"    {line}" for line in str(net.module).splitlines()))
    verdict = judge(seed)
    print(verdict)
    return int(verdict.kind == "wrong")


def _verdicts(first: int, count: int, jobs: int) -> Iterator[Verdict]:
    """In order. Memory of many captures is given back with the processes: a pool that renews its
    own (max_tasks_per_child) stands still in Python 3.11."""
    for start in range(first, first + count, AT_A_TIME):
        seeds = range(start, min(start + AT_A_TIME, first + count))
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_prepare
        ) as pool:
            yield from pool.map(_one, seeds, chunksize=5)


def search(first: int, count: int, jobs: int, refused: bool = False) -> int:
    """Counts, refusals by reason, and every net that is wrong."""
    print(f"seeds {first} to {first + count - 1}", flush=True)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    worst, errors = 0.0, []
    for done, verdict in enumerate(_verdicts(first, count, jobs), 1):
        counts[verdict.kind] += 1
        counts["warned"] += verdict.warned
        for note in verdict.notes:
            counts[note] += 1
            if refused:
                print(f"{note}: net {verdict.seed}: {verdict.why}", flush=True)
        if verdict.kind == "refused":
            reasons[verdict.why] += 1
            if refused:
                print(f"refused net {verdict.seed}: {verdict.why}", flush=True)
        elif verdict.kind == "wrong":
            print(f"WRONG net {verdict.seed}: {verdict.why}", flush=True)
        else:
            worst = max(worst, verdict.steps)
            errors.append(verdict.error)
        if done % 100 == 0:
            print(f"{done}/{count} {dict(counts)}", flush=True)
    print(f"\n{dict(counts)}")
    if errors:
        errors.sort()
        print(f"taken: median error {errors[len(errors) // 2]:.3g}, most steps of one op {worst:g}")
    for reason, times in reasons.most_common(40):
        print(f"{times:5d}  {reason}")
    if counts["wrong"]:
        print("see one: python tools/fuzz_nets.py --net SEED")
    return int(counts["wrong"] > 0)


def main() -> int:
    """One net, or a search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="the first net; drawn if left out")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--refused", action="store_true", help="name each net that is refused")
    parser.add_argument("--net", type=int, help="judge one net and show it")
    arguments = parser.parse_args()
    if arguments.net is not None:
        _quiet()
        return show(arguments.net)
    first = secrets.randbelow(10**8) if arguments.seed is None else arguments.seed
    return search(first, arguments.count, arguments.jobs, arguments.refused)


if __name__ == "__main__":
    sys.exit(main())
