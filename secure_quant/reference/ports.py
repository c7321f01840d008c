"""Named arrays in and out of a graph's packed vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.errors import DtypeMismatch, ShapeMismatch, ValueOutOfRange
from secure_quant.ir import Graph
from secure_quant.ir.ports import Port
from secure_quant.reference.kernels import along

__all__ = ["dequantize", "named", "quantize_input", "quantize_packed"]


def quantize_input(graph: Graph, x: ArrayLike | Mapping[str, ArrayLike]) -> NDArray[np.int8]:
    """``clip(round_half_even(x / scale) + zero_point, -128, 127)`` as the Input node says, of a
    real array [batch, *input shape].

    Of a graph with ports: a mapping of every port's name to its array, each [batch, *shape] and
    quantized by its port (an array alone where there is one port); int8[batch, N], as they lie in
    the Input. Ports ``name.0``, ``name.1``, ... may be given as the columns of one array.
    Integer ports take integers and bool ports 0, 1 and booleans; what is outside an integer port's
    range is refused, not clipped. Where a port is rows of a table, the array has their numbers.

    The quotient is a float64 one. Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange.
    """
    ports = graph.input_ports
    if not isinstance(x, Mapping):
        whole = {port.name.rpartition(".")[0] for port in ports}
        if len(ports) > 1 and len(whole) == 1 and whole != {""}:
            x = {whole.pop(): x}
        elif len(ports) > 1:
            raise ShapeMismatch(
                "input", got="one array", expected=f"arrays by name: {_names(ports)}",
                hint='pass {"name": array, ...}',
            )  # fmt: skip
        else:
            x = {ports[0].name: x}
    x = _by_column(ports, x)
    if set(x) != {port.name for port in ports}:
        got = ", ".join(ascii(name) for name in list(x)[:8]) or "none"
        raise ShapeMismatch("names of inputs", got=got, expected=_names(ports))
    arrays = [_checked(port, x[port.name], len(ports) > 1 or graph.has_ports) for port in ports]
    counts = {port.name: len(array) for port, array in zip(ports, arrays, strict=True)}
    if len(set(counts.values())) > 1:
        raise ShapeMismatch("samples of the inputs", got=counts, expected="as many of each")
    parts = [_made(graph, port, array) for port, array in zip(ports, arrays, strict=True)]
    return _whole(graph, parts)


def quantize_packed(graph: Graph, x: NDArray[Any]) -> NDArray[np.int8]:
    """As ``quantize_input``, of finite reals end to end, as a caller has them: [batch, N], or
    [batch, *input shape] without ports. Nothing is refused."""
    ports = graph.input_ports
    if ports[0].node == graph.input.name:
        return _quantized(ports[0], x)
    parts, start = [], 0
    for port in ports:
        stop = start + math.prod(port.asked)
        parts.append(_made(graph, port, x[:, start:stop].reshape(len(x), *port.asked)))
        start = stop
    return _whole(graph, parts)


def _made(graph: Graph, port: Port, array: NDArray[Any]) -> NDArray[np.int8]:
    """The integers of a port: digits of row numbers, a table's rows, or of real values."""
    if port.digits:
        number = np.asarray(array).astype(np.int64)[..., None]
        digits = number >> 8 * np.arange(port.digits) & 255
        return digits.astype(np.uint8).view(np.int8)
    if port.rows:
        made: NDArray[np.int8] = graph.lookup(port.node)[np.asarray(array).astype(np.int64)]
        return made
    return _quantized(port, array)


def _whole(graph: Graph, parts: list[NDArray[np.int8]]) -> NDArray[np.int8]:
    if len(parts) == 1:
        return parts[0].reshape(-1, *graph.input.shape)
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def dequantize(graph: Graph, y: NDArray[Any]) -> NDArray[np.float32]:
    """The integers at the Output, [batch, *output shape] -> float32 of that shape, as the Output
    node, or each port's part of it, says.

    The integer factor is exact, the scale multiplies in float64, and the cast rounds to nearest.
    """
    ports = graph.output_ports
    if len(ports) == 1:
        return _real(ports[0], y.reshape(len(y), *ports[0].shape)).reshape(y.shape)
    made = [_real(port, part) for port, part in zip(ports, _parts(ports, y), strict=True)]
    return np.concatenate([part.reshape(len(part), -1) for part in made], axis=1)


def named(graph: Graph, y: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What lies in the Output by name, [batch, *shape] each: integers or reals of
    [batch, *output shape]."""
    ports = graph.output_ports
    return {port.name: part for port, part in zip(ports, _parts(ports, y), strict=True)}


def _parts(ports: tuple[Port, ...], y: NDArray[Any]) -> list[NDArray[Any]]:
    flat = y.reshape(len(y), -1)
    return [flat[:, port.start : port.stop].reshape(len(y), *port.shape) for port in ports]


def _by_column(ports: tuple[Port, ...], x: Mapping[str, ArrayLike]) -> Mapping[str, ArrayLike]:
    """``x`` with an array [batch, ...] of which each column has a port, ``name.0``, ``name.1``,
    ..., in its columns. Raises ShapeMismatch."""
    known, made = {port.name for port in ports}, dict(x)
    for name in [name for name in x if name not in known and f"{name}.0" in known]:
        count = sum(other.rpartition(".")[0] == name for other in known)
        try:
            array = np.asarray(made.pop(name))
        except ValueError:
            array = np.zeros(0)
        flat = array.reshape(len(array), -1) if array.ndim > 1 and len(array) else array
        if flat.ndim != 2 or flat.shape[1] != count:
            raise ShapeMismatch(
                f"input {name!r}", got=list(array.shape), expected=f"[batch >= 1, {count}]"
            )
        made |= {f"{name}.{i}": flat[:, i] for i in range(count)}
    return made


def _names(ports: tuple[Port, ...]) -> str:
    return ", ".join(ascii(port.name) for port in ports[:32])


def _checked(port: Port, x: ArrayLike, is_named: bool) -> NDArray[Any]:
    """``x`` as an array that the port may be made of."""
    what = f"input {port.name!r}" if is_named else "input"
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ShapeMismatch(what, got="rows of unequal length", expected="an array") from error
    except (TypeError, RuntimeError) as error:  # of a GPU, with a gradient, of a type numpy lacks
        raise DtypeMismatch(
            what, got=f"{type(x).__name__} that is no array of numpy's",
            expected="an array of real numbers", hint="of torch: x.detach().cpu().float()",
        ) from error  # fmt: skip
    if np.ma.is_masked(x):
        raise ValueOutOfRange(what, got="masked values", expected="numbers: x.filled(...)")
    kinds, expected = _KINDS[port.dtype]
    if array.dtype.kind not in kinds:
        raise DtypeMismatch(what, got=array.dtype, expected=expected)
    if is_named and port.asked == (1,) and array.ndim == 1:
        array = array[:, None]  # one number a sample
    shape = port.asked
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape or len(array) == 0:
        want = f"[{', '.join(['batch >= 1', *map(str, shape)])}]"
        hint = "one sample is x[None]" if array.shape == shape else None
        raise ShapeMismatch(what, got=list(array.shape), expected=want, hint=hint)
    if not np.isfinite(array).all():
        raise ValueOutOfRange(what, got="NaN or infinity", expected="finite numbers")
    if port.dtype != "float32":
        low, high = _domain(port)
        if bool((array < low).any() or (array > high).any()):
            raise ValueOutOfRange(what, got="a value outside", expected=f"{low} to {high}")
    return array


_KINDS = {
    "float32": ("fiu", "a real number type"),
    "int64": ("iub", "an integer type"),
    "bool": ("iub", "bool, or 0 and 1"),
}


_DIGITS = 1e-6
"""To which a scale is kept: the largest integer of a calibration is inside."""


def _domain(port: Port) -> tuple[int, int]:
    """Of an integer port: what its int8 can stand for, rounded inwards."""
    if port.dtype == "bool":
        return 0, 1
    if port.rows:
        return 0, port.rows - 1
    ends = np.array([-128, 127], np.float64) - port.value.zero_point
    low, high = ends * port.value.scale * (1 + _DIGITS)
    return int(np.ceil(low)), int(np.floor(high))


def _quantized(port: Port, array: NDArray[Any]) -> NDArray[np.int8]:
    # Divided in float64 and clipped before the cast: no rounding twice, no wrapped extremes.
    with np.errstate(over="ignore"):
        rounded = np.rint(array.astype(np.float64) / port.value.scale) + port.value.zero_point
    made: NDArray[np.int8] = np.clip(rounded, -128, 127).astype(np.int8)
    return made


def _real(port: Port, y: NDArray[Any]) -> NDArray[np.float32]:
    multiplier = along(port.multiplier, port.axis, y.ndim)
    real = (y.astype(np.int64) - port.value.zero_point) * multiplier * port.value.scale
    return real.astype(np.float32)
