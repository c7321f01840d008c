"""Shape and range inference, which is also the proof that no accumulator overflows.

``verify`` checks the structure, then walks the nodes once, with one rule per op (``ir.rules``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from numpy.typing import NDArray

from secure_quant.errors import InvalidGraph
from secure_quant.ir import ops
from secure_quant.ir.bounds import conv_output, dynamic_levels, linear_bound, public_bound
from secure_quant.ir.checks import MAX_ELEMENTS, MAX_TABLE, MAX_WINDOWS, check_shape, require
from secure_quant.ir.ports import check_ports
from secure_quant.ir.rules import ARITY, RULES, Given
from secure_quant.ir.values import Value

__all__ = [
    "MAX_ELEMENTS",
    "MAX_NODES",
    "MAX_TABLE",
    "MAX_TOTAL",
    "MAX_WINDOWS",
    "conv_output",
    "dynamic_levels",
    "linear_bound",
    "needs_parameters",
    "parameter_shapes",
    "public_bound",
    "verify",
]

MAX_NODES = 10_000
MAX_TOTAL = 2**30
"""Per-sample elements of all values together."""
_SCALES = (2.0**-120, 2.0**64)
"""Scales that neither divide by a subnormal nor leave float32 with the largest accumulator."""


def verify(nodes: Sequence[ops.Node], parameters: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
    """Value of every node by name. No parameters: a public graph, whose bounds are taken as
    declared. Raises InvalidGraph, OverflowRisk."""
    _check_structure(nodes)
    if parameters or not needs_parameters(nodes):
        _check_parameters(nodes, parameters)
    values: dict[str, Value] = {}
    given = Given({node.name: node for node in nodes}, parameters, values)
    total = 0
    for node in nodes:
        value = RULES[type(node)](given, node, [values[name] for name in node.inputs])
        check_shape(node, value.shape)
        total += value.size
        require(node, total <= MAX_TOTAL, "elements in all", total, f"<= {MAX_TOTAL}")
        low, high = _SCALES
        require(node, low <= value.scale <= high, "scale", value.scale, f"{low} to {high}")
        values[node.name] = value
    check_ports(nodes, values)
    return values


def needs_parameters(nodes: Iterable[ops.Node]) -> bool:
    """True if some node has a weight."""
    return any(isinstance(node, ops.Linear | ops.Conv2d | ops.Embedding) for node in nodes)


def parameter_shapes(nodes: Iterable[ops.Node]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Parameter name -> (shape, dtype name) that the nodes declare."""
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for node in nodes:
        if isinstance(node, ops.Embedding):
            expected[f"{node.name}.weight"] = ((node.rows, node.width), "int8")
            continue
        if isinstance(node, ops.Linear):
            out = node.out_features
            shape: tuple[int, ...] = (out, node.in_features)
        elif isinstance(node, ops.Conv2d):
            out = node.out_channels
            shape = (out, node.in_channels // max(node.groups, 1), *node.kernel)
        else:
            continue
        expected[f"{node.name}.weight"] = (shape, "int8")
        if node.bias:
            expected[f"{node.name}.bias"] = ((out,), "int32")
    return expected


def _check_structure(nodes: Sequence[ops.Node]) -> None:
    if not 2 <= len(nodes) <= MAX_NODES:
        raise InvalidGraph("number of nodes", got=len(nodes), expected=f"2 to {MAX_NODES}")
    seen: set[str] = set()
    for place, node in enumerate(nodes):
        if type(node) not in RULES:
            raise InvalidGraph("op", got=type(node).__name__, expected="one of secure_quant.ir.ops")
        _check_fields(node)
        require(node, node.name not in seen, "name", node.name, "one not yet taken")
        arity = ARITY.get(type(node), 1)
        if arity is None:
            require(node, len(node.inputs) >= 1, "inputs", len(node.inputs), "at least 1")
        else:
            require(node, len(node.inputs) == arity, "inputs", len(node.inputs), arity)
        for name in node.inputs:
            require(node, name in seen, "input", name, "the name of an earlier node")
        first, last = place == 0, place == len(nodes) - 1
        require(node, isinstance(node, ops.Input) == first, "place", place, "Input first only")
        require(node, isinstance(node, ops.Output) == last, "place", place, "Output last only")
        seen.add(node.name)
    used = {name for node in nodes for name in node.inputs}
    dead = [node.name for node in nodes[:-1] if node.name not in used]
    if dead:
        raise InvalidGraph("nodes that nothing reads", got=dead[:5], expected="none")


def _check_fields(node: ops.Node) -> None:
    for f in fields(node):
        kind = str(f.type)
        if not ops.is_kind(getattr(node, f.name), kind):
            got = type(getattr(node, f.name)).__name__
            raise InvalidGraph(f"{type(node).__name__}.{f.name}", got=got, expected=f"a {kind}")


def _check_parameters(nodes: Sequence[ops.Node], parameters: Mapping[str, NDArray[Any]]) -> None:
    expected = parameter_shapes(nodes)
    got = {name: (a.shape, a.dtype.name) for name, a in parameters.items()}
    if got != expected:
        wrong = sorted(set(got.items()) ^ set(expected.items()))[:4]
        raise InvalidGraph("parameters", got=wrong, expected="exactly those the nodes declare")
