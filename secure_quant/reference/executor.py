"""Runs a whole graph in plaintext."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.errors import DtypeMismatch, ShapeMismatch, ValueOutOfRange
from secure_quant.ir import Graph
from secure_quant.reference.kernels import along, evaluate

__all__ = ["check_int8", "dequantize", "quantize_input", "run", "run_int", "trace"]


def run(graph: Graph, x: ArrayLike) -> NDArray[np.float32]:
    """float[batch, *input shape] -> float32[batch, *output shape].

    Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity), MissingParameters.
    """
    return dequantize(graph, run_int(graph, quantize_input(graph, x)))


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


def quantize_input(graph: Graph, x: ArrayLike) -> NDArray[np.int8]:
    """``clip(round_half_even(x / scale) + zero_point, -128, 127)`` as the Input node says.

    The quotient is a float64 one. Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange.
    """
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ShapeMismatch("input", got="rows of unequal length", expected="an array") from error
    if array.dtype.kind not in "fiu":
        raise DtypeMismatch("input", got=array.dtype, expected="a real number type")
    _check_shape(graph, array)
    if not np.isfinite(array).all():
        raise ValueOutOfRange("input", got="NaN or infinity", expected="finite numbers")
    node = graph.input
    # Divided in float64 and clipped before the cast: no rounding twice, no wrapped extremes.
    with np.errstate(over="ignore"):
        rounded = np.rint(array.astype(np.float64) / node.scale) + node.zero_point
    made: NDArray[np.int8] = np.clip(rounded, -128, 127).astype(np.int8)
    return made


def dequantize(graph: Graph, y: NDArray[Any]) -> NDArray[np.float32]:
    """The integers at the Output -> float32, as the Output node says.

    The integer factor is exact, the scale multiplies in float64, and the cast rounds to nearest.
    """
    node = graph.output
    zero_point = graph.values[node.name].zero_point
    multiplier = along(node.multiplier, node.axis, y.ndim)
    real = (y.astype(np.int64) - zero_point) * multiplier * node.scale
    return real.astype(np.float32)


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
