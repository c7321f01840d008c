"""How far an inference is that runs in rounds: which share of its work lies before a round, and
what it works on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from secure_quant.ir.effort import of_node
from secure_quant.ir.graph import Graph

__all__ = ["Course", "Place", "Step"]

_PRODUCT, _LOOKUP, _ROUND = 1, 320, 250_000
"""Of a product, a table or comparison, and a round: what they take of one another under secret
sharing, by the times of ResNet-50 and BERT-base in bench/RESULTS.md."""


class Step(NamedTuple):
    """A gate as the plan has it: the node's name, its inputs, its rounds."""

    name: str
    inputs: Sequence[str]
    rounds: int


class Place(NamedTuple):
    """rounds: done. thousandths: of the work. stage: a node's name, "" before and after all."""

    rounds: int
    of: int
    thousandths: int
    stage: str


class Course:
    """Of one sample, or of several side by side. A gate begins when its inputs are there; products
    come before its first round, lookups between all of them."""

    def __init__(self, graph: Graph, steps: Iterable[Step], rounds: int) -> None:
        """``rounds``: in all; what comes after the last gate's included."""
        self.rounds = max(rounds, 1)
        work = [_ROUND] * (self.rounds + 1)
        most, self._stages = [-1] * (self.rounds + 1), [""] * (self.rounds + 1)
        ends: dict[str, int] = {}
        for step in steps:
            start = max((ends[name] for name in step.inputs), default=0)
            ends[step.name] = start + step.rounds
            products, lookups = of_node(graph, graph.by_name[step.name])
            each = _LOOKUP * lookups // (step.rounds + 1)
            for place in range(start, min(start + step.rounds, self.rounds) + 1):
                mine = each + (_PRODUCT * products if place == start else 0)
                work[place] += mine
                if mine > most[place]:
                    most[place], self._stages[place] = mine, step.name
        self._before = [0, *accumulate(work)]

    def at(self, rounds: int, samples: int = 1) -> Place:
        """After so many rounds of as many samples one after the other."""
        of = self.rounds * samples
        done = min(max(rounds, 0), of)
        sample, place = divmod(done, self.rounds)
        whole = self._before[-1]
        share = 1000 * (sample * whole + self._before[place]) // (samples * whole)
        return Place(done, of, share, "" if done == of else self._stages[place])
