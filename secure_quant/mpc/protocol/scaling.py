"""Products with a factor that tables make of one sum, as behind a softmax: the factor is looked up
in one table of the sum itself and multiplies as it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secure_quant.ir import Graph, ops
from secure_quant.mpc.protocol.borrow import Borrow
from secure_quant.mpc.protocol.gates.base import Gate
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.mpc.protocol.gates.scaled import ScaledProductGate
from secure_quant.mpc.protocol.reach import reach
from secure_quant.mpc.protocol.tables import Lookup, bits_of

__all__ = ["Scaling", "Scalings", "scaling_of"]

MOST_BITS = 15
"""Of a sum: the one-hot of its mask is 4 KiB."""
MOST_TABLES = 8
"""Summands of a factor."""


@dataclass(frozen=True)
class Scaling:
    """product: v times ``factor``, which ``tables`` make of ``total``. inner: what stands between,
    and is not computed. look: of the factor's numbers, from ``floor`` on."""

    product: ops.Mul
    factor: str
    total: str
    tables: tuple[ops.Requantize, ...]
    inner: tuple[str, ...]
    look: Lookup
    floor: int

    def number(self, graph: Graph) -> RequantizeGate:
        """The gate that opens the factor's numbers, in its place."""
        shape, bits = graph.values[self.factor].shape, self.look.out_bits
        common: dict[str, Any] = {
            "name": self.factor, "inputs": (self.total,), "shape": shape, "bits": bits,
            "zero_point": graph.values[self.total].zero_point, "axis": -1,
        }  # fmt: skip
        count = graph.values[self.factor].size
        free, dealt = RequantizeGate.material(self.look, count, bits)
        payloads = tuple(((count, each),) for each in self.look.payloads(bits))
        return RequantizeGate(
            **common, look=self.look, free_words=free, dealt_words=dealt, payloads=payloads
        )

    def scaled(self, graph: Graph, ring: int) -> ScaledProductGate:
        """The product's gate, in Z_2^ring."""
        v, made = graph.values[self.product.inputs[0]], graph.values[self.product.name]
        numbers, width = graph.values[self.factor].shape, self.look.out_bits
        free, dealt = ScaledProductGate.material(made.shape, numbers, width, ring)
        return ScaledProductGate(
            name=self.product.name, inputs=self.product.inputs, shape=made.shape, bits=ring,
            width=width, floor=self.floor, numbers=numbers, zero_point=v.zero_point,
            free_words=free, dealt_words=dealt, payloads=(((made.size, ring),),),
        )  # fmt: skip


class Scalings:
    """Those of a plan in the making. inside: nodes whose values are not computed, or not lifted."""

    def __init__(self) -> None:
        self._found: list[Scaling] = []
        self.inside: set[str] = set()

    def take(
        self, graph: Graph, product: Gate, rings: dict[str, int], each: int,
        looked_up: Callable[[ops.Requantize, int], Any],
    ) -> bool:  # fmt: skip
        """Whether the Mul of the gate ``product`` pays as a Scaling, where a round is worth
        ``each`` bits of material; then raises the rings of what it reads. looked_up: how a table
        is looked up by itself, for a ring."""
        found, ring = scaling_of(graph, product.name), rings[product.name]
        if found is None:
            return False
        alone = [(graph.values[table.name].size, looked_up(table, ring)) for table in found.tables]
        saved = max(len(way.payloads(ring)) for _, way in alone) - len(found.look.payloads(1))
        before = 64 * product.dealt_words + sum(size * bits_of(way, ring) for size, way in alone)
        made = (found.number(graph), found.scaled(graph, ring))
        if 64 * sum(gate.dealt_words for gate in made) - before >= each * saved:
            return False
        self._found.append(found)
        self.inside |= {found.factor, *found.inner}
        for name, need in ((product.inputs[0], ring), (found.total, found.look.ring)):
            rings[name] = max(rings[name], need)
        return True

    def gates(self, graph: Graph, rings: dict[str, int]) -> dict[str, Gate | None]:
        """By name, of what they change: None where there is no gate any more."""
        made: dict[str, Gate | None] = dict.fromkeys(self.inside)
        for each in self._found:
            made[each.factor] = each.number(graph)
            made[each.product.name] = each.scaled(graph, rings[each.product.name])
        return made


def scaling_of(graph: Graph, name: str) -> Scaling | None:
    """Of the Mul ``name``; None where its second factor is something else, or read elsewhere."""
    product = graph.by_name[name]
    if not isinstance(product, ops.Mul) or product.inputs[0] == product.inputs[1]:
        return None
    factor = product.inputs[1]
    tables, names = _tables(graph, factor)
    sums = {table.inputs[0] for table in tables}
    if not tables or len(sums) > 1:
        return None
    total = sums.pop()
    x = reach(graph, total)
    width = max((x.hi - x.lo).bit_length(), 1)
    if width > MOST_BITS:
        return None
    values = [sum(_entry(table, acc) for table in tables) for acc in range(x.lo, x.hi + 1)]
    floor, most = min(values), max(values)
    look = Lookup(
        "V4", width, 0, (1,), -x.lo, width, 0, 0, 0, Borrow(()),
        max((most - floor).bit_length(), 1), tuple(values), 0, lifted=False,
    )  # fmt: skip
    return Scaling(product, factor, total, tables, tuple(names - {factor}), look, floor)


def _tables(graph: Graph, name: str) -> tuple[tuple[ops.Requantize, ...], set[str]]:
    """Tables whose sum ``name`` is and that nothing else reads, and all names from there to them;
    none for other values."""
    found: list[ops.Requantize] = []
    names, left = set[str](), [name]
    while left:
        node = graph.by_name[left.pop()]
        names.add(node.name)
        if len(graph.consumers[node.name]) > 1 or len(found) == MOST_TABLES:
            return (), set()
        if isinstance(node, ops.Requantize) and len(node.multiplier) == 1:
            found.append(node)
        elif (
            isinstance(node, ops.Add) and node.factors == (1, 1)
            and len({graph.values[each].shape for each in node.inputs}) == 1
            and node.inputs[0] != node.inputs[1]
        ):  # fmt: skip
            left += node.inputs
        else:
            return (), set()
    return tuple(found), names


def _entry(node: ops.Requantize, acc: int) -> int:
    """x̂ of the table's entry for ``acc``."""
    place = (acc * node.multiplier[0] + node.offset) >> node.shift
    return node.table[min(max(place, 0), len(node.table) - 1)] - node.zero_point
