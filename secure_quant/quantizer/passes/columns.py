"""Row numbers of which each column means something else: categories of a table, as people keep
them in one integer array, and tables that share the numbers of one input.

``emb[i](cats[:, i])`` and ``emb(cats + offsets)`` choose rows by single columns. Each column
becomes a port of its own, ``cats.0``, ``cats.1``, ..., with as many rows as it may choose from.
Where all columns choose of the same tables, rows are looked up once and moved afterwards; public
tables of as many rows lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import TABLE_RANGE
from secure_quant.quantizer.opset import COPIES
from secure_quant.quantizer.passes.edit import Editor, constant_of
from secure_quant.quantizer.passes.fold import constants_for
from secure_quant.quantizer.ports import COLUMN, INPUT_PORT
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_columns"]

aten = torch.ops.aten

_EMBEDDING = aten.embedding.default
_MOVES = COPIES | {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.to.device,
    aten.select.int, aten.slice.Tensor, aten.narrow.default, aten.unbind.int, aten.split.Tensor,
    aten.split_with_sizes.default, aten.chunk.default, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.flatten.using_ints,
    aten.unflatten.int, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.flip.default, aten.index_select.default,
}  # fmt: skip
MOST_COLUMNS = 512
"""Ports of one input."""
_OWN_INPUT = "give these columns as an input of their own"


@dataclass(frozen=True)
class _Moved:
    """What a node has of an integer input: at each place of a batch the number of its element,
    counted over all samples, and what is added there."""

    places: Tensor
    added: Tensor


@dataclass(frozen=True)
class _Reader:
    """places, added: of a sample, int64[*shape]. axis: of the batch in ``moved``. table: what an
    embedding chooses rows of."""

    node: Node
    moved: Node
    places: Tensor
    added: Tensor
    axis: int
    table: Node | None


def lower_columns(module: GraphModule, batch: int, private: bool) -> None:
    """Make lookups by parts of integer inputs lookups by whole inputs, in place. ``batch``: samples
    in the example that the graph was captured with. ``private``: tables are secret.

    What it does not know it leaves, for ``lower_lookups`` to refuse. Raises UnsupportedModule for
    columns that cannot be told apart.
    """
    if not any(n.target is _EMBEDDING for n in module.graph.nodes):
        return
    for port in [n for n in module.graph.nodes if n.target is INPUT_PORT]:
        if port.args[2] == "int64":
            _Columns(module, port, batch, private).lower()
    module.graph.eliminate_dead_code()
    module.recompile()


class _Columns:
    """Of one integer input."""

    def __init__(self, module: GraphModule, port: Node, batch: int, private: bool) -> None:
        self._module, self._port, self._batch, self._private = module, port, batch, private
        self._width = int(torch.Size(port.args[4]).numel())  # type: ignore[arg-type]
        self._found: dict[Any, Node] = {}

    def lower(self) -> None:
        readers = self._readers()
        chosen = [r for r in readers or () if r.table is not None]
        if readers is None or not chosen:
            return
        plain = all(r.moved is self._port and not r.added.any() for r in readers)
        keys = {key for r in chosen for key in self._keys(r)}
        if plain and (len(chosen) == 1 or self._private):
            return
        by_column: dict[int, set[tuple[Node, int]]] = {}
        for reader in chosen:
            places = reader.places.flatten().tolist()
            for place, key in zip(places, self._keys(reader), strict=True):
                by_column.setdefault(place, set()).add(key)
        alike = all(found == keys for found in by_column.values())
        if alike and len(chosen) == len(readers):
            for reader in chosen:
                self._whole(reader, keys)
            return
        self._check_columns(readers)
        for reader in readers:
            self._apart(reader, by_column)

    def _keys(self, reader: _Reader) -> list[tuple[Any, int]]:
        return [(reader.table, int(a)) for a in reader.added.flatten()]

    def _readers(self) -> list[_Reader] | None:
        """What reads the input behind moves and sums with whole numbers; None if the samples of a
        batch do not stay apart."""
        known = {self._port: self._start()}
        constants = constants_for(self._module, self._batch)
        found = []
        for node in self._module.graph.nodes:
            read = [n for n in node.all_input_nodes if n in known]
            if not read or node in known or node.target is aten.sym_size.int:
                continue
            made = self._moved(node, known, constants)
            if made is not None:
                known[node] = made
                continue
            for moved in read:
                if moved is node.args[0] and node.target is _EMBEDDING:
                    return None  # a table of integers
                sample = self._sample(known[moved])
                if sample is None:
                    return None
                table: Any = node.args[0] if node.target is _EMBEDDING else None
                if table is not None and constant_of(self._module, table) is None:
                    return None
                found.append(_Reader(node, moved, *sample, table))
        return found

    def _start(self) -> _Moved:
        shape = self._port.args[4]
        places = torch.arange(self._batch * self._width).reshape(self._batch, *shape)  # type: ignore[misc]
        return _Moved(places, torch.zeros_like(places))

    def _moved(self, node: Node, known: dict[Node, Any], constants: dict[Node, Any]) -> Any:
        """_Moved of a node, or a sequence of these; None for what is neither move nor sum."""
        args: Any = node.args
        source = known.get(args[0]) if args else None
        if source is None:
            return None
        if node.target is not aten.add.Tensor and getattr(node.target, "__name__", "") == "getitem":
            return source[args[1]] if isinstance(source, list) else None
        if isinstance(source, list):
            return None
        rest = torch.fx.map_arg(args[1:], lambda n: constants.get(n))
        if node.target is aten.add.Tensor and not node.kwargs:
            return self._sum(source, rest[0])
        same = node.target in (aten.to.dtype, aten._to_copy.default) and _is_int64(node)
        if same:
            return source
        if node.target not in _MOVES:
            return None
        target: Any = node.target
        places, added = (target(x, *rest, **node.kwargs) for x in (source.places, source.added))
        if isinstance(places, list | tuple):
            return [_Moved(p, a) for p, a in zip(places, added, strict=True)]
        return _Moved(places, added)

    @staticmethod
    def _sum(source: _Moved, other: Any) -> _Moved | None:
        whole = isinstance(other, int) or (
            isinstance(other, Tensor) and not other.dtype.is_floating_point
        )
        if not whole:
            return None
        added = source.added + other
        return replace(source, added=added) if added.shape == source.places.shape else None

    def _sample(self, moved: Any) -> tuple[Tensor, Tensor, int] | None:
        """(places, added) of a sample, and the axis of the batch, where it is alone."""
        for axis in range(0 if isinstance(moved, list) else moved.places.ndim):
            places, added = moved.places.movedim(axis, 0), moved.added.movedim(axis, 0)
            steps = torch.arange(self._batch).reshape(-1, *[1] * (places.ndim - 1)) * self._width
            apart = len(places) == self._batch and torch.equal(places, places[:1] + steps)
            whole = apart and not int(places[0].min() // self._width)
            if whole and torch.equal(added, added[:1].expand_as(added)):
                return places[0], added[0], axis
        return None

    def _check_columns(self, readers: Sequence[_Reader]) -> None:
        used = {place for r in readers for place in r.places.flatten().tolist()}
        name, node = self._port.args[1], readers[0].node
        if len(used) < self._width:
            gap = min(set(range(self._width)) - used)
            raise unsupported(
                node, f"columns of {name!r} of which no output depends on number {gap}",
                "leave it out of the data, and of what forward asks for",
            )  # fmt: skip
        if self._width > MOST_COLUMNS:
            raise unsupported(
                node, f"{self._width} columns of {name!r} that choose of unlike tables",
                f"give at most {MOST_COLUMNS} such columns in one input",
            )  # fmt: skip

    def _whole(self, reader: _Reader, keys: set[tuple[Node, int]]) -> None:
        """Rows of the whole input, of all tables side by side, and then the moves."""
        edit = Editor(self._module, reader.node)
        added = int(reader.added.flatten()[0])
        rows = self._rows(self._port, (reader.table, added), keys, None, edit)
        width = int(rows.meta["val"].shape[-1])
        if reader.moved is not self._port:
            flat = edit.call(aten.reshape.default, rows, [-1, self._width, width])
            places = reader.places.flatten()
            if not torch.equal(places, torch.arange(self._width)):
                flat = edit.call(aten.index_select.default, flat, 1, edit.constant(places))
            rows = edit.call(aten.reshape.default, flat, [-1, *reader.places.shape, width])
        edit.replace(_placed(edit, rows, reader.axis))

    def _apart(self, reader: _Reader, by_column: dict[int, set[tuple[Node, int]]]) -> None:
        """A lookup for each column, side by side again."""
        edit = Editor(self._module, reader.node)
        places, shape = reader.places.flatten().tolist(), list(reader.places.shape)
        if reader.table is None:
            if len(places) > 1 or reader.axis:
                raise unsupported(
                    reader.node, f"columns of {self._port.args[1]!r}, others of which choose rows "
                    "of tables", _OWN_INPUT,
                )  # fmt: skip
            column = self._column(places[0])
            whole = column if not shape else edit.call(aten.reshape.default, column, [-1, *shape])
            reader.node.replace_input_with(reader.moved, whole)
            return
        whole_table = constant_of(self._module, reader.table)
        assert whole_table is not None  # noqa: S101  its reader has been looked at
        limits = min(float(whole_table.min()), 0.0), max(float(whole_table.max()), 0.0)
        parts = [
            self._rows(self._column(place), key, by_column[place], limits, edit)
            for place, key in zip(places, self._keys(reader), strict=True)
        ]
        width = int(parts[0].meta["val"].shape[-1])
        wide = [edit.call(aten.unsqueeze.default, part, 1) for part in parts]
        made = wide[0] if len(wide) == 1 else edit.call(aten.cat.default, wide, 1)
        made = edit.call(aten.reshape.default, made, [-1, *shape, width])
        edit.replace(_placed(edit, made, reader.axis))

    def _column(self, place: int) -> Node:
        """A port of a single number, ``name.place``."""
        if place not in self._found:
            port: Any = self._port.args
            packed, name, dtype, start = port[:4]
            edit = Editor(self._module, self._port)
            made = edit.call(INPUT_PORT, packed, f"{name}.{place}", dtype, start + place, [], False)
            made.meta[COLUMN] = name
            self._found[place] = made
        return self._found[place]

    def _rows(
        self, numbers: Node, key: tuple[Any, int], keys: set[tuple[Node, int]],
        limits: tuple[float, float] | None, edit: Editor,
    ) -> Node:  # fmt: skip
        """Rows by ``numbers`` of the table of ``key``, which may lie beside others of as many."""
        table, added = key
        tables = {k: constant_of(self._module, k[0])[k[1] :] for k in keys}  # type: ignore[index]
        if self._private or len({len(t) for t in tables.values()}) > 1 or len(tables) == 1:
            if (numbers, key) not in self._found:
                given = edit.call(aten.add.Tensor, numbers, added) if added else numbers
                made = self._found[numbers, key] = edit.call(_EMBEDDING, table, given)
                if limits is not None:
                    made.meta[TABLE_RANGE] = limits
            return self._found[numbers, key]
        return self._beside(numbers, key, tables)

    def _beside(
        self, numbers: Node, key: tuple[Any, int], tables: dict[tuple[Node, int], Tensor]
    ) -> Node:
        """The columns of one of several tables, which are looked up as one: each as large as the
        largest, and back, so that all keep their bits."""
        order = sorted(tables, key=lambda k: (k[0].name, k[1]))
        size = max(float(t.abs().max()) for t in tables.values())
        factors = {k: size / (float(t.abs().max()) or size or 1.0) for k, t in tables.items()}
        if numbers not in self._found:
            edit = Editor(self._module, numbers.next)
            wide = torch.cat([tables[k] * factors[k] for k in order], 1)
            self._found[numbers] = edit.call(_EMBEDDING, edit.constant(wide), numbers)
        made = self._found[numbers]
        start = sum(tables[k].shape[1] for k in order[: order.index(key)])
        edit = Editor(self._module, made.next)
        axis = int(made.meta["val"].ndim) - 1
        own = edit.call(aten.slice.Tensor, made, axis, start, start + tables[key].shape[1])
        return own if factors[key] == 1 else edit.call(aten.mul.Tensor, own, 1 / factors[key])


def _placed(edit: Editor, rows: Node, axis: int) -> Node:
    """``rows``, [batch, ...], with the batch at ``axis``."""
    if axis == 0:
        return rows
    order = list(range(1, int(rows.meta["val"].ndim)))
    order.insert(axis, 0)
    return edit.call(aten.permute.default, rows, order)


def _is_int64(node: Node) -> bool:
    made: Any = node.meta.get("val")
    return isinstance(made, Tensor) and made.dtype is torch.int64
