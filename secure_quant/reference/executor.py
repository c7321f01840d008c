"""Runs a whole graph in plaintext."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.errors import DtypeMismatch, ShapeMismatch, ValueOutOfRange
from secure_quant.ir import Graph
from secure_quant.reference.kernels import evaluate
from secure_quant.reference.ports import dequantize, named, quantize_input

__all__ = ["answer", "asked", "check_int8", "run", "run_int", "trace"]


@overload
def run(graph: Graph, x: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float32]]: ...


@overload
def run(graph: Graph, x: ArrayLike) -> NDArray[np.float32]: ...


def run(graph: Graph, x: Any) -> Any:
    """float[batch, *input shape] -> float32[batch, *output shape].

    A mapping of each input's name to its array gives a mapping of each output's name to its array,
    float32[batch, *shape]. An array gives an array, where the graph has one of each.

    Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity), MissingParameters.
    """
    return answer(graph, x, run_int(graph, asked(graph, x)))


def asked(graph: Graph, x: Any) -> NDArray[np.int8]:
    """``quantize_input``, for somebody who gets an ``answer``. Raises ShapeMismatch for an array
    where several outputs come back, which need names."""
    if not isinstance(x, Mapping) and len(graph.output_ports) > 1:
        raise ShapeMismatch(
            "input", got="an array", expected="arrays by name, which give outputs by name",
            hint=f'pass {{"{graph.input_ports[0].name}": array}}',
        )  # fmt: skip
    return quantize_input(graph, x)


def answer(graph: Graph, x: Any, y: NDArray[Any]) -> Any:
    """The integers at the Output, [batch, *output shape], as whoever asked with ``x`` gets them:
    float32 arrays by name for a mapping, else the one array."""
    outputs = named(graph, dequantize(graph, y))
    return outputs if isinstance(x, Mapping) else next(iter(outputs.values()))


def run_int(graph: Graph, q: NDArray[Any]) -> NDArray[np.int64]:
    """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]."""
    values: dict[str, NDArray[np.int64]] = {graph.input.name: check_int8(graph, q)}
    unread = {name: len(nodes) for name, nodes in graph.consumers.items()}
    for node in graph.nodes[1:]:
        values[node.name] = evaluate(graph, node, [values[name] for name in node.inputs])
        for name in node.inputs:
            unread[name] -= 1
            if not unread[name]:
                del values[name]  # no value is held longer than it is read
    return values[graph.output.name]


def trace(graph: Graph, q: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    """Every node's value by name, int64[batch, *shape]."""
    values: dict[str, NDArray[np.int64]] = {graph.input.name: check_int8(graph, q)}
    for node in graph.nodes[1:]:
        values[node.name] = evaluate(graph, node, [values[name] for name in node.inputs])
    return values


def check_int8(graph: Graph, q: NDArray[Any]) -> NDArray[np.int64]:
    """``q`` as int64 once its shape, integer dtype and int8 range are certain.

    Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange.
    """
    array = np.asarray(q)
    if array.dtype.kind not in "iu":
        raise DtypeMismatch("quantized input", got=array.dtype, expected="int8")
    _check_shape(graph, array)
    if array.size and (array.min() < -128 or array.max() > 127):
        raise ValueOutOfRange("quantized input", got="a value outside", expected="-128 to 127")
    return array.astype(np.int64)


def _check_shape(graph: Graph, array: NDArray[Any]) -> None:
    expected = graph.input.shape
    if array.ndim != len(expected) + 1 or array.shape[1:] != expected or len(array) == 0:
        want = f"[batch >= 1, {', '.join(map(str, expected))}]"
        raise ShapeMismatch("input", got=list(array.shape), expected=want)
