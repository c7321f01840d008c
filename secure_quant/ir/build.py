"""Grows the list of ir nodes: names, bounds, and the step from accumulator to activation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OverflowRisk
from secure_quant.ir import ops
from secure_quant.ir.fit import ALIGNED_TABLE, ALIGNED_WIDE, fit, refined, stepped
from secure_quant.ir.graph import Graph
from secure_quant.ir.kept import Part, parts_of, whole_channels
from secure_quant.ir.quotients import quotient_bound
from secure_quant.ir.run_time import rescaled
from secure_quant.ir.tables import Grid, Table, make_pieces, make_table, wide_as_its_zero
from secure_quant.ir.terms import Term
from secure_quant.ir.values import INT32, WIDE, Interval
from secure_quant.ir.verify import MAX_TABLE, public_bound

__all__ = ["INT16_TABLE", "Builder", "int_bias", "short"]

LONGEST_NAME = 150
"""Of a path in a model; a node's name may have fifty characters more."""
INT8_TABLE = 272
"""Entries of a table to int8: buckets at most two steps of the output wide, on average one and a
third. Finer tables gain little accuracy and make small model files larger."""
INT16_TABLE = 2040
"""Entries of a table to int16. Secret sharing looks up in 2^11 entries, which hold them and both
ends; a value a row (an inverse norm) may have as many as there can be."""


class Builder:
    """The graph under construction. Every method returns the Term of the value it made."""

    def __init__(self, int16_table: int) -> None:
        self._int16_table = int16_table
        self.nodes: list[ops.Node] = []
        self.parameters: dict[str, NDArray[Any]] = {}
        self.lookups: dict[str, NDArray[Any]] = {}
        self._names: set[str] = set()
        self.centred: dict[str, Interval] = {}
        """Range of x̂, or of the accumulator, of values that nodes make."""
        self.common: dict[str, float] = {}
        """Fixed-point value or run-time scale -> a common large value of it, in its own steps."""
        self.taken: dict[str, tuple[str, str]] = {}
        """Value -> its DynamicScale and DynamicQuantize, where it has them."""

    def name(self, wanted: str) -> str:
        """``wanted`` in the characters that a name may have, with a number behind it if it is
        taken."""
        plain = "".join(c if "!" <= c <= "~" else f"_{ord(c):x}" for c in wanted)
        made = wanted = plain if len(plain) <= LONGEST_NAME else plain[-LONGEST_NAME:]
        number = 1
        while made in self._names:
            number += 1
            made = f"{wanted}{number}"
        self._names.add(made)
        return made

    def add(self, node: ops.Node) -> str:
        self.nodes.append(node)
        return node.name

    def bound(self, name: str, proven: int, most: int = WIDE.hi) -> int:
        """What the node declares for a proven bound. Raises OverflowRisk above ``most``."""
        declared = public_bound(proven)
        if declared > most:
            raise OverflowRisk(
                f"accumulator of {name!r}", got=f"up to {proven}", expected=f"<= {most}",
                hint="split the layer's inputs, or quantize its weights with fewer levels",
            )  # fmt: skip
        return declared

    def accumulator(
        self,
        node: Any,
        shape: tuple[int, ...],
        multiplier: tuple[int, ...] = (1,),
        axis: int = -1,
    ) -> Term:
        """Term of an accumulating node, which this adds."""
        self.add(node)
        span = Interval(-node.bound, node.bound)
        self.centred[node.name] = span
        return Term(node.name, shape, span, node.scale, 0, True, multiplier, axis)

    def requantize(
        self, term: Term, grid: Grid, name: str, *, fixed: bool = True, exact: bool = False,
        stairs: bool = False,
    ) -> Term:  # fmt: skip
        """The integer activation on ``grid`` of a term; the same term if it is that already.

        Unless ``fixed``, the scale may become a little larger, so that the buckets of the table are
        the steps of the grid and a value is rounded once. ``exact``: readers take sums, so that the
        sum of several tables may stay one. ``stairs``: of a function that rises from 0 in a
        straight line to its largest, a table of the steps of the grid alone where its scale allows
        that.
        """
        same = term.plain and (term.scale, term.zero_point) == (grid.scale, grid.zero_point)
        if same and grid.low <= term.range.lo and term.range.hi <= grid.high:
            return term
        term = rescaled(self, term)
        wide = grid.low < -128 or grid.high > 127
        row = wide and term.shape[-1:] == (1,)
        if not (fixed or row):
            fitted = fit(term, grid, ALIGNED_WIDE if wide else ALIGNED_TABLE)
            if stairs:
                fitted = stepped(term, grid)
            if fitted is not None:
                term, grid, table = fitted
                return self.viewed(self._looked_up(term, table, grid, name), term, name)
        limit = MAX_TABLE if row else self._int16_table if wide else INT8_TABLE
        if wide and not row:
            term = refined(term, grid, limit)
        tables: tuple[Table, ...] = (make_table(term.span, term.scale, term.apply, grid, limit),)
        if row:
            jump = (grid.high - grid.low) >> 6
            tables = make_pieces(term.span, term.scale, term.apply, grid, limit, jump)
        first = self._looked_up(term, tables[0], grid, name)
        q = first
        for table in tables[1:]:
            more = self._looked_up(term, table, replace(grid, zero_point=0), name)
            q = self._joined(q, more, grid, f"{name}.sum")
        if q is not first and not exact:
            q = self._looked_up(q, _unchanged(grid), grid, name)
        return self.viewed(replace(q, shape=term.shape), term, name)

    def round_off(self, term: Term, step: float, name: str) -> Term:
        """The accumulator of a term in steps of about ``step``, with all that its proven range
        holds: nothing is clipped, and secret sharing takes a round less."""
        shift = max(round(math.log2(step / term.scale)), 1)
        low, high = ((end + (1 << (shift - 1))) >> shift for end in (term.span.lo, term.span.hi))
        node = ops.Rescale(
            name=self.name(name), inputs=(term.name,), multiplier=term.multiplier, axis=term.axis,
            shift=shift, bias=(), low=low, high=high, scale=short(term.scale * 2**shift),
        )  # fmt: skip
        made = Interval(low, high)
        self.centred[node.name] = made
        return Term(self.add(node), term.shape, made, node.scale, 0, True)

    def requantize_kept(self, term: Term, grid: Grid, name: str) -> Term:
        """The integer activation on a grid that is given, of a term that may have given scales;
        the same term if it is that already. Raises OverflowRisk."""
        if term.plain and (term.scale, term.zero_point) == (grid.scale, grid.zero_point):
            return term
        if not term.accumulator:  # each value has an entry
            table = make_table(term.span, term.scale, term.apply, grid, MAX_TABLE)
            return self.viewed(self._looked_up(term, table, grid, name), term, name)
        parts = parts_of(term, grid, name)
        self.settle(term.name, parts[0].term)
        made = [self._looked_up(part.term, part.table, grid, name) for part in parts]
        if len(parts) > 1:
            made = [self._put_together(made, parts, name)]
        return self.viewed(replace(made[0], shape=term.shape), term, name)

    def settle(self, name: str, term: Term) -> None:
        """Tell the node of an accumulator what its unit is worth, for multipliers in lowest terms
        as everywhere."""
        scale = short(term.scale * math.gcd(*term.multiplier))
        place = next(i for i, node in enumerate(self.nodes) if node.name == name)
        self.nodes[place] = replace(self.nodes[place], scale=scale)  # type: ignore[call-arg]

    def quotient(self, product: str, factor: str) -> int | None:
        """See ``quotient_bound``; of values that nodes make."""
        by_name = {node.name: node for node in self.nodes}
        known = isinstance(by_name[product], ops.MatMul) and all(
            name in self.centred for name in by_name[product].inputs
        )
        return quotient_bound(by_name, self.centred.__getitem__, product, factor) if known else None

    def _with_multipliers(self, term: Term) -> Term:
        """For an output. Raises OverflowRisk."""
        made = whole_channels(term)
        if term.real:
            self.settle(term.name, made)
        return made

    def _put_together(self, made: list[Term], parts: tuple[Part, ...], name: str) -> Term:
        """The channels of each part that are right in it, in their order."""
        shape = list(parts[0].term.own_shape or parts[0].term.shape)
        axis = parts[0].term.axis % len(shape)
        chosen = []
        for q, part in zip(made, parts, strict=True):
            cut = (*shape[:axis], len(part.channels), *shape[axis + 1 :])
            some = ops.Gather(
                name=self.name(f"{name}.part"), inputs=(q.name,), axis=axis, index=part.channels
            )
            chosen.append(self.move(some, q, cut))
        joined = ops.Concat(
            name=self.name(f"{name}.parts"), inputs=tuple(q.name for q in chosen), axis=axis
        )
        first = chosen[0]
        whole = self.move(joined, first, tuple(shape))
        for q in chosen[1:]:
            whole = replace(whole, range=whole.range.hull(q.range))
        order = [channel for part in parts for channel in part.channels]
        places = tuple(order.index(channel) for channel in range(len(order)))
        sorted_ = ops.Gather(
            name=self.name(f"{name}.all"), inputs=(whole.name,), axis=axis, index=places
        )
        return self.move(sorted_, whole, tuple(shape))

    def _looked_up(self, term: Term, table: Table, grid: Grid, name: str) -> Term:
        table = wide_as_its_zero(table, term.span, grid)
        if len(table.entries) > MAX_TABLE:
            raise OverflowRisk(
                f"table of {name!r}", got=f"{len(table.entries)} entries",
                expected=f"<= {MAX_TABLE}", hint="mode 'static' has 8 bits, and no such table",
            )  # fmt: skip
        node = ops.Requantize(
            name=self.name(name), inputs=(term.name,), multiplier=term.multiplier,
            axis=term.axis, offset=table.offset, shift=table.shift, table=table.entries,
            scale=grid.scale, zero_point=grid.zero_point,
        )  # fmt: skip
        made = Interval(min(table.entries), max(table.entries))
        self.centred[node.name] = made - grid.zero_point
        return Term(self.add(node), term.shape, made, grid.scale, grid.zero_point)

    def _joined(self, a: Term, b: Term, grid: Grid, name: str) -> Term:
        """The accumulator a + b of two values on one scale."""
        made = self.name(name)
        bound = self.bound(made, (a.centred + b.centred).magnitude)
        node = ops.Add(
            name=made, inputs=(a.name, b.name), factors=(1, 1), bound=bound, scale=grid.scale
        )
        return self.accumulator(node, a.shape)

    def viewed(self, q: Term, term: Term, name: str) -> Term:
        """``q``, made from ``term``, under the shape that the model sees."""
        if term.own_shape is None:
            return q
        view = ops.Reshape(name=self.name(f"{name}.view"), inputs=(q.name,), shape=term.shape)
        return self.move(view, q, term.shape)

    def move(self, node: ops.Node, term: Term, shape: tuple[int, ...]) -> Term:
        """Term of a node that keeps the integers of ``term``, which this adds."""
        self.centred[node.name] = term.centred
        return Term(
            self.add(node), shape, term.range, term.scale, term.zero_point, term.accumulator,
            dynamic=term.dynamic,
        )  # fmt: skip

    def finish(self, term: Term) -> Graph:
        """The verified graph whose output is ``term``, an activation or a plain accumulator."""
        term = rescaled(self, self._with_multipliers(term))
        self.add(
            ops.Output(
                name=self.name("output"),
                inputs=(term.name,),
                multiplier=term.multiplier,
                axis=term.axis,
                scale=term.scale,
            )
        )
        return self._finished()

    def finish_ports(self, terms: Mapping[str, Term]) -> Graph:
        """The verified graph with an output of each name, activations or plain accumulators."""
        ports = []
        for name, term in terms.items():
            term = rescaled(self, self._with_multipliers(term))
            port = ops.OutputPort(
                name=self.name(f"output.{name}"), inputs=(term.name,), port=name,
                multiplier=term.multiplier, axis=term.axis, scale=term.scale,
            )  # fmt: skip
            ports.append(self.add(port))
        self.add(ops.Output(name=self.name("output"), inputs=tuple(ports), scale=1.0))
        return self._finished()

    def _finished(self) -> Graph:
        kept = _packed(_live(self.nodes))
        names = {node.name for node in kept}
        parameters = {
            key: value for key, value in self.parameters.items() if key.rpartition(".")[0] in names
        }
        lookups = {name: table for name, table in self.lookups.items() if name in names}
        return Graph(kept, parameters, lookups=lookups)


def _live(nodes: list[ops.Node]) -> tuple[ops.Node, ...]:
    """The nodes that the last one needs, and the Input."""
    needed = {nodes[-1].name, nodes[0].name}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return tuple(node for node in nodes if node.name in needed)


def _packed(nodes: tuple[ops.Node, ...]) -> tuple[ops.Node, ...]:
    """The ports of the Input, if there are any, behind it in the order of their starts, and end to
    end."""
    first, *others = nodes
    ports = [node for node in others if isinstance(node, ops.InputPort)]
    if not ports or not isinstance(first, ops.Input):
        return nodes
    placed: list[ops.Node] = []
    place = 0
    for port in sorted(ports, key=lambda each: each.start):
        placed.append(replace(port, start=place))
        place += math.prod(port.shape)
    rest = [node for node in others if not isinstance(node, ops.InputPort)]
    return (replace(first, shape=(place,)), *placed, *rest)


def _unchanged(grid: Grid) -> Table:
    """The table that makes q of x̂."""
    entries = tuple(range(grid.low, grid.high + 1))
    return Table(grid.zero_point - grid.low, 0, entries)


def short(scale: float) -> float:
    """``scale`` to seven digits: float32's own precision in half the characters of a file."""
    return float(f"{scale:.7g}")


def int_bias(bias: NDArray[Any] | None, scales: NDArray[np.float64], where: str) -> NDArray[Any]:
    """int32[out] nearest to ``bias / scales``. Raises OverflowRisk."""
    if bias is None:
        return np.zeros(len(scales), np.int32)
    q = np.rint(bias.astype(np.float64) / scales)
    if np.abs(q).max() > INT32.hi:
        raise OverflowRisk(f"bias of {where!r}", got="a value beyond int32", expected="int32")
    return q.astype(np.int32)
