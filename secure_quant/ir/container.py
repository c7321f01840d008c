"""safetensors files of little-endian integer arrays, read without trust and written canonically.

Reading checks every size against the length of the data before anything is made of it. Writing is
a function of its arguments alone: the same arrays and metadata give the same bytes, which the
safetensors library does not promise (its metadata comes out in any order).
``docs/spec/file-format.md`` states the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedModel

__all__ = ["MAX_FILE", "MAX_HEADER", "Array", "read_tensors", "unique_keys", "write_tensors"]

Array = NDArray[Any]

MAX_FILE = 4 * 2**30
MAX_HEADER = 8 * 2**20
MAX_RANK = 8
_METADATA = "__metadata__"
_DTYPES = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U64": "<u8"}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}


def write_tensors(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, byte for byte reproducible.

    Widest elements first, then by name, behind a header of whole 8 bytes: every array is aligned.
    Raises MalformedModel for a dtype that the format lacks or a file above the limits.
    """
    little = {name: _little(name, array) for name, array in tensors.items()}
    order = sorted(little, key=lambda name: (-little[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))}
    place = 0
    for name in order:
        array = little[name]
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > MAX_HEADER or place > MAX_FILE - MAX_HEADER - 8:
        raise MalformedModel(
            "file", got=f"{len(head)} bytes of header, {place} of data",
            expected=f"<= {MAX_HEADER} and {MAX_FILE} in all",
        )  # fmt: skip
    body = (little[name].tobytes() for name in order)
    return b"".join((len(head).to_bytes(8, "little"), head, *body))


def read_tensors(data: bytes | memoryview) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors (read-only views of ``data``) and metadata of a safetensors file.

    Tensors must lie end to end, as the format demands; names must be unique. Raises MalformedModel.
    """
    view = memoryview(data).toreadonly()
    head = int.from_bytes(view[:8], "little")
    if len(view) < 8 or not 2 <= head <= min(MAX_HEADER, len(view) - 8):
        raise MalformedModel("safetensors file", got=f"{len(view)} bytes", expected="a whole file")
    try:
        header = json.loads(bytes(view[8 : 8 + head]).decode(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise MalformedModel("safetensors header", got="not JSON") from error
    metadata = header.pop(_METADATA, {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise MalformedModel("safetensors header", expected="an object with metadata of strings")
    body = view[8 + head :]
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    tensors: dict[str, Array] = {}
    place = 0
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        size = prod(shape) * dtype.itemsize
        if start != place or stop - start != size or stop > len(body):
            raise MalformedModel(
                f"offsets of {name[:80]!r}", got=f"{start} to {stop}",
                expected=f"{place} to {place + size} of {len(body)}",
            )  # fmt: skip
        tensors[name] = np.frombuffer(body[start:stop], dtype).reshape(shape)
        place = stop
    if place != len(body):
        raise MalformedModel("safetensors data", got=f"{len(body)} bytes", expected=place)
    return tensors, metadata


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON object hook. Raises ValueError where a name stands twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


def _little(name: str, array: Array) -> Array:
    little = np.asarray(array, order="C")
    little = little.astype(little.dtype.newbyteorder("<"), copy=False)
    if little.dtype not in _CODES or name == _METADATA:
        raise MalformedModel(
            f"tensor {name[:80]!r}", got=little.dtype, expected=", ".join(_CODES[d] for d in _CODES)
        )
    return little


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """(dtype, shape, start, stop) of one header entry, well-formed but not yet placed."""
    try:
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        shape, (start, stop) = entry["shape"], entry["data_offsets"]
        numbers = [start, stop, *shape]
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedModel(
            f"tensor {name[:80]!r}", expected="dtype, shape and offsets"
        ) from error
    whole = len(entry) == 3 and isinstance(shape, list) and len(shape) <= MAX_RANK
    if not whole or not all(type(n) is int and 0 <= n <= MAX_FILE for n in numbers):
        raise MalformedModel(f"tensor {name[:80]!r}", expected="a shape and offsets of naturals")
    if prod(n or 1 for n in shape) > MAX_FILE:  # an empty array may still have giant axes
        raise MalformedModel(f"tensor {name[:80]!r}", got="giant axes", expected=f"<= {MAX_FILE}")
    return dtype, tuple(shape), start, stop
