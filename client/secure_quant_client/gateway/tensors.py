"""Tensors of the Open Inference Protocol: datatypes, raw bytes, typed contents, JSON. Nothing of
what a caller sends is trusted, and no error repeats a value of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import DtypeMismatch, MalformedMessage, ShapeMismatch, ValueOutOfRange
from secure_quant.ir.ports import Port

__all__ = [
    "ANSWERED",
    "asked_of",
    "from_contents",
    "from_json",
    "from_raw",
    "metadata_shape",
    "to_raw",
]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8), "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""The protocol's names of what a model may be asked with; BF16 and BYTES are not among them."""
_OF_PORT = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}
MOST_DIMENSIONS = 32
ANSWERED = "FP32"
"""Datatype of every output."""
_CONTENTS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents",
    "UINT32": "uint_contents", "UINT64": "uint64_contents", "INT8": "int_contents",
    "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
"""The field of InferTensorContents that holds a datatype; FP16 travels raw alone."""


def asked_of(port: Port) -> str:
    """The datatype that metadata states for an input."""
    return _OF_PORT[port.dtype]


def metadata_shape(shape: Sequence[int]) -> list[int]:
    """Of a sample -> of a batch, whose size is open."""
    return [-1, *shape]


def from_raw(name: str, datatype: str, shape: Sequence[int], data: bytes) -> NDArray[Any]:
    """Row-major little-endian bytes. Raises DtypeMismatch, ShapeMismatch, ValueOutOfRange."""
    dtype = _dtype(name, datatype)
    expected = dtype.itemsize * _elements(name, shape)
    if len(data) != expected:
        got = f"{len(data)} bytes"
        raise ShapeMismatch(f"data of input {name!r}", got=got, expected=f"{expected}")
    if datatype == "BOOL" and data.translate(None, b"\0\1"):
        raise ValueOutOfRange(f"input {name!r}", got="a byte other than 0 and 1", expected="BOOL")
    return _shaped(name, np.frombuffer(data, dtype), shape)


def from_contents(name: str, datatype: str, shape: Sequence[int], contents: Any) -> NDArray[Any]:
    """An InferTensorContents. Raises as ``from_raw``, MalformedMessage for another field's."""
    dtype = _dtype(name, datatype)
    field = _CONTENTS.get(datatype)
    if field is None:
        hint = f"{datatype} travels in raw_input_contents"
        raise MalformedMessage(f"contents of input {name!r}", got=datatype, hint=hint)
    for other, _ in contents.ListFields():
        if other.name != field:
            what = f"contents of input {name!r}"
            raise MalformedMessage(what, got=other.name, expected=f"{field} for {datatype}")
    return _typed(name, datatype, dtype, shape, getattr(contents, field))


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> NDArray[Any]:
    """Numbers or booleans in a list, flat or nested as the shape says. Raises as ``from_raw``."""
    if not isinstance(data, list):
        raise MalformedMessage(f"data of input {name!r}", got=type(data).__name__, expected="list")
    dtype = _dtype(name, datatype)
    flat = data
    while flat and all(isinstance(each, list) for each in flat):
        if len({len(each) for each in flat}) > 1:
            what = f"data of input {name!r}"
            raise ShapeMismatch(what, got="rows of unequal length", expected=list(shape)[:8])
        flat = [element for each in flat for element in each]
    kinds: set[type] = {type(each) for each in flat}
    allowed: set[type] = {bool} if dtype.kind == "b" else {int}
    if dtype.kind == "f":
        allowed.add(float)
    if kinds - allowed:
        got = ", ".join(sorted(kind.__name__ for kind in kinds - allowed))
        raise DtypeMismatch(f"data of input {name!r}", got=got, expected=datatype)
    return _typed(name, datatype, dtype, shape, flat)


def to_raw(array: NDArray[np.float32]) -> bytes:
    """Row-major little-endian bytes."""
    return array.astype("<f4", copy=False).tobytes()


def _typed(
    name: str, datatype: str, dtype: np.dtype[Any], shape: Sequence[int], values: Sequence[Any]
) -> NDArray[Any]:
    if len(values) != _elements(name, shape):
        what = f"data of input {name!r}"
        raise ShapeMismatch(what, got=f"{len(values)} elements", expected=_elements(name, shape))
    if dtype.kind in "iu" and len(values):
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            what = f"input {name!r}"
            raise ValueOutOfRange(what, got="a value outside", expected=f"the range of {datatype}")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused where it is quantized
            flat = np.array(values, dtype)
    except OverflowError as error:  # an integer beyond any float
        what = f"input {name!r}"
        raise ValueOutOfRange(what, got="a value outside", expected=datatype) from error
    return _shaped(name, flat, shape)


def _shaped(name: str, flat: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    try:
        return flat.reshape(tuple(shape))
    except (ValueError, OverflowError) as error:  # an empty one, with a size beyond any array
        raise ShapeMismatch(f"shape of input {name!r}", expected="sizes of an array") from error


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    found = DTYPES.get(datatype)
    if found is None:
        expected = ", ".join(DTYPES)
        raise DtypeMismatch(f"input {name!r}", got=ascii(datatype[:20]), expected=expected)
    return found


def _elements(name: str, shape: Sequence[int]) -> int:
    if len(shape) > MOST_DIMENSIONS or any(not 0 <= each < 2**63 for each in shape):
        got, most = f"{len(shape)} dimensions", f"at most {MOST_DIMENSIONS}, each of 0 to 2^63 - 1"
        raise ShapeMismatch(f"shape of input {name!r}", got=got, expected=most)
    return prod(shape)
