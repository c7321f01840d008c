"""Tensors of the Open Inference Protocol against numpy's own bytes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from secure_quant.errors import DtypeMismatch, MalformedMessage, ShapeMismatch, ValueOutOfRange
from secure_quant.wire.gen.open_inference_pb2 import InferTensorContents
from secure_quant_client.gateway.tensors import DTYPES, from_contents, from_json, from_raw, to_raw

FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b",
    "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""Of ``struct``, which shares nothing with numpy."""
FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


def some(datatype: str) -> list[Any]:
    if datatype == "BOOL":
        return [True, False, True, True, False, False]
    if datatype.startswith("FP"):
        return [0.5, -1.25, 3.0, 0.0, 1024.0, -0.0625]
    bits = int(datatype.lstrip("UINT"))
    return [
        0,
        1,
        2,
        3,
        2 ** (bits - 1) - 1,
        2**bits - 1 if datatype[0] == "U" else -(2 ** (bits - 1)),
    ]


def test_every_datatype_is_known_here() -> None:
    assert FORMATS.keys() == DTYPES.keys()


@pytest.mark.parametrize("datatype", FORMATS)
def test_all_three_forms_give_the_same_array(datatype: str) -> None:
    values = some(datatype)
    raw = struct.pack(f"<6{FORMATS[datatype]}", *values)
    found = [from_raw("x", datatype, [2, 3], raw)]
    found.append(from_json("x", datatype, [2, 3], values))
    found.append(from_json("x", datatype, [2, 3], [values[:3], values[3:]]))
    if datatype != "FP16":
        contents = InferTensorContents(**{FIELDS[datatype]: values})
        found.append(from_contents("x", datatype, [2, 3], contents))
    for array in found:
        assert array.shape == (2, 3)
        assert array.dtype == DTYPES[datatype]
        assert array.reshape(-1).tolist() == values


def test_answers_are_little_endian() -> None:
    array = np.array([[1.5, -2.0]], np.float32)
    assert to_raw(array) == to_raw(array.astype(">f4")) == struct.pack("<2f", 1.5, -2.0)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "error"),
    [
        ("FP32", [2], bytes(7), ShapeMismatch),
        ("FP32", [2, 2], bytes(8), ShapeMismatch),
        ("FP32", [-1], bytes(4), ShapeMismatch),
        ("FP32", [2**63], b"", ShapeMismatch),
        ("FP32", [0, 2**62, 2**62], b"", ShapeMismatch),
        ("FP32", [1] * 33, bytes(4), ShapeMismatch),
        ("BOOL", [2], b"\1\2", ValueOutOfRange),
        ("BYTES", [1], b"\4\0\0\0abcd", DtypeMismatch),
        ("BF16", [2], bytes(4), DtypeMismatch),
        ("fp32", [1], bytes(4), DtypeMismatch),
    ],
)
def test_raw_bytes_that_do_not_fit_name_the_input(
    datatype: str, shape: list[int], raw: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error, match="input 'x'"):
        from_raw("x", datatype, shape, raw)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "error"),
    [
        ("FP32", [2], [1.0], ShapeMismatch),
        ("FP32", [2, 2], [[1, 2], [3]], ShapeMismatch),
        ("FP32", [2], [1.0, "2"], DtypeMismatch),
        ("FP32", [2], [1.0, None], DtypeMismatch),
        ("FP32", [2], [1.0, [2.0]], DtypeMismatch),
        ("FP32", [1], [True], DtypeMismatch),
        ("FP64", [1], [10**400], ValueOutOfRange),
        ("INT64", [1], [1.0], DtypeMismatch),
        ("INT64", [1], [2**63], ValueOutOfRange),
        ("INT8", [2], [1, 128], ValueOutOfRange),
        ("UINT8", [1], [-1], ValueOutOfRange),
        ("BOOL", [1], [1], DtypeMismatch),
        ("FP32", [1], 1.0, MalformedMessage),
        ("FP32", [1], {"0": 1.0}, MalformedMessage),
        ("BYTES", [1], ["abc"], DtypeMismatch),
    ],
)
def test_json_that_does_not_fit_names_the_input(
    datatype: str, shape: list[int], data: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="input 'x'"):
        from_json("x", datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "contents", "error"),
    [
        ("FP32", {"fp64_contents": [1.0]}, MalformedMessage),
        ("FP32", {"fp32_contents": [1.0], "bool_contents": [True]}, MalformedMessage),
        ("FP16", {"fp32_contents": [1.0]}, MalformedMessage),
        ("INT8", {"int_contents": [200]}, ValueOutOfRange),
        ("INT32", {"int_contents": [1, 2]}, ShapeMismatch),
        ("INT32", {}, ShapeMismatch),
    ],
)
def test_contents_that_do_not_fit_name_the_input(
    datatype: str, contents: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match="input 'x'"):
        from_contents("x", datatype, [1], InferTensorContents(**contents))
