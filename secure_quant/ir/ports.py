"""Named arrays at a graph's borders: how several inputs lie in the one packed Input, and several
outputs in the one Output. An engine sees nothing of it but two vectors of integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from secure_quant.errors import OpNotSupported
from secure_quant.ir import ops
from secure_quant.ir.checks import require
from secure_quant.ir.values import Value

__all__ = [
    "Port",
    "check_ports",
    "id_bits",
    "id_digits",
    "input_ports",
    "output_ports",
    "refuse_secret_tables",
]


@dataclass(frozen=True, slots=True)
class Port:
    """One array at the border.

    name        for the caller; ``node`` is the graph's own.
    dtype       of what the caller passes or gets: float32, int64 or bool.
    start       of its elements, which lie in row-major order in the packed vector of a sample.
    value       its shape per sample, scale, zero point and range.
    multiplier  of each channel along ``axis``, of an output.
    rows        of the table that the caller's numbers choose from; 0 where there is none.
    digits      of each number, where the table is secret and the integers are digits; else 0.
    """

    name: str
    node: str
    dtype: str
    start: int
    value: Value
    multiplier: tuple[int, ...] = (1,)
    axis: int = -1
    rows: int = 0
    digits: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def asked(self) -> tuple[int, ...]:
        """Shape of a sample that the caller passes or gets: that of the numbers where the integers
        are rows of a table, or digits."""
        return self.shape[:-1] if self.rows else self.shape

    @property
    def stop(self) -> int:
        return self.start + self.value.size


def input_ports(nodes: Sequence[ops.Node], values: Mapping[str, Value]) -> tuple[Port, ...]:
    """In their order in the Input; the whole Input where it has no ports."""
    found = tuple(
        _input_port(node, values[node.name]) for node in nodes if isinstance(node, ops.InputPort)
    )
    name = nodes[0].name
    return found or (Port(name, name, "float32", 0, values[name]),)


def _input_port(node: ops.InputPort, value: Value) -> Port:
    rows = node.rows if isinstance(node, ops.LookupPort | ops.IdPort) else 0
    digits = node.shape[-1] if isinstance(node, ops.IdPort) else 0
    return Port(node.port, node.name, node.dtype, node.start, value, rows=rows, digits=digits)


def id_bits(rows: int) -> int:
    """Of the numbers of so many rows."""
    return max((rows - 1).bit_length(), 1)


def id_digits(rows: int) -> int:
    """To base 256, of the same."""
    return -(-id_bits(rows) // 8)


def refuse_secret_tables(nodes: Iterable[ops.Node], where: str) -> None:
    """Raises OpNotSupported for a table that the client must not see, where nobody else can choose
    rows of it."""
    for node in nodes:
        if isinstance(node, ops.Embedding):
            raise OpNotSupported(
                f"Embedding {node.name!r} {where}",
                got=f"rows of a secret table of {node.rows}, which the client alone could choose",
                hint="serve it under secret sharing (engine mpc), or quantize with "
                'embedding="client", which makes the table public',
            )  # fmt: skip


def output_ports(nodes: Sequence[ops.Node], values: Mapping[str, Value]) -> tuple[Port, ...]:
    """In their order in the Output; the whole Output where it has no ports."""
    by_name = {node.name: node for node in nodes}
    found: list[Port] = []
    start = 0
    for name in nodes[-1].inputs:
        node, value = by_name[name], values[name]
        if isinstance(node, ops.OutputPort):
            found.append(Port(node.port, name, "float32", start, value, node.multiplier, node.axis))
            start += value.size
    last = nodes[-1]
    if found or not isinstance(last, ops.Output):
        return tuple(found)
    whole = values[last.name]
    return (Port(last.name, last.name, "float32", 0, whole, last.multiplier, last.axis),)


def check_ports(nodes: Sequence[ops.Node], values: Mapping[str, Value]) -> None:
    """Raises InvalidGraph for ports that overlap, leave a gap, share a name, or are read by what
    may not read them."""
    inputs = [node for node in nodes if isinstance(node, ops.InputPort)]
    outputs = [node for node in nodes if isinstance(node, ops.OutputPort)]
    for ports in (inputs, outputs):
        _check_names(ports)
    if inputs:
        _check_tiling(nodes, inputs, values)
    if outputs or len(nodes[-1].inputs) > 1:
        _check_outputs(nodes, outputs, values)


def _check_names(ports: Iterable[ops.InputPort | ops.OutputPort]) -> None:
    seen: set[str] = set()
    for node in ports:
        require(node, node.port not in seen, "port", repr(node.port), "a name not yet taken")
        seen.add(node.port)


def _check_tiling(
    nodes: Sequence[ops.Node], ports: Sequence[ops.InputPort], values: Mapping[str, Value]
) -> None:
    first, place = nodes[0], 0
    for node in ports:
        require(node, node.start == place, "start", node.start, f"{place}, where the last one ends")
        place += values[node.name].size
    whole = values[first.name].size
    require(first, place == whole, "elements of its ports", place, whole)
    for reader in nodes:
        other = first.name in reader.inputs and not isinstance(reader, ops.InputPort)
        require(reader, not other, "input", first.name, "a port of it")


_MASKED = (ops.Linear, ops.Conv2d, ops.MatMul, ops.Mul)
"""Their accumulators leave an engine as shares, or enter a Requantize: not both."""


def _check_outputs(
    nodes: Sequence[ops.Node], ports: Sequence[ops.OutputPort], values: Mapping[str, Value]
) -> None:
    last, names = nodes[-1], {node.name for node in ports}
    ok = set(last.inputs) == names and len(set(last.inputs)) == len(last.inputs)
    require(last, ok, "inputs", last.inputs[:5], "every port once, and nothing else")
    read = {node.inputs[0] for node in ports}
    require(last, not read & names, "a port", "of a port", "of another value")
    by_name = {node.name: node for node in nodes}
    for reader in nodes[:-1]:
        if reader.name in names:
            continue
        for name in reader.inputs:
            require(reader, name not in names, "input", name, "no output port")
            shared = name in read and isinstance(by_name[name], _MASKED)
            require(reader, not shared, "input", name, "an accumulator that no output port reads")
