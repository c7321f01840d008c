"""The order in which gates start: each when its inputs are there, in the nodes' order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from secure_quant.mpc.protocol.gates.base import Gate

__all__ = ["Order", "Walk"]


@dataclass(frozen=True)
class Order:
    """What stays alike for all calls. waits: how many values each gate reads. readers: places of
    the gates that read a value, by its name."""

    gates: tuple[Gate, ...]
    waits: tuple[int, ...]
    readers: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, gates: Sequence[Gate]) -> Order:
        """gates: in an order in which they could be computed."""
        readers: dict[str, tuple[int, ...]] = {gate.name: () for gate in gates}
        for place, gate in enumerate(gates):
            for name in gate.inputs:
                readers[name] += (place,)
        return cls(tuple(gates), tuple(len(gate.inputs) for gate in gates), readers)


class Walk:
    """One call: iterating gives gates that may start, for as long as there are any; ``made`` lets
    others follow, and then it may be iterated again."""

    def __init__(self, order: Order) -> None:
        self._order, self._missing = order, list(order.waits)
        self._free = [place for place, missing in enumerate(order.waits) if not missing]

    def __iter__(self) -> Iterator[Gate]:
        while self._free:
            yield self._order.gates[heappop(self._free)]

    def made(self, name: str) -> None:
        """A value is there."""
        for place in self._order.readers[name]:
            self._missing[place] -= 1
            if not self._missing[place]:
                heappush(self._free, place)
