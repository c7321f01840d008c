"""The model file: one safetensors file, no pickle. ``docs/spec/file-format.md`` states it.

Metadata: ``format``, ``graph`` (canonical JSON), ``commitment`` and ``hash`` in hex.
Tensors: ``tables``, ``multipliers``, ``salt``, and per Linear or Conv2d ``NAME.bias`` and either
``NAME.weight`` (int8) or, where that is smaller, ``NAME.codes`` (two 4-bit codes a byte, low half
first) with ``NAME.codebook`` (int8[1 or out_channels, 16]).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from secure_quant.errors import HashMismatch, MalformedModel, UnsupportedVersion
from secure_quant.ir.codec import PublicParts, from_parts, parse_nodes, to_parts
from secure_quant.ir.graph import FORMAT_VERSION, Graph
from secure_quant.ir.verify import parameter_shapes

__all__ = ["decode", "encode", "load", "read_tensors", "save", "write_tensors"]

FORMAT = f"secure-quant/{FORMAT_VERSION}"
MAX_FILE = 4 * 2**30
MAX_HEADER = 32 * 2**20
_DTYPES = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U64": "<u8"}

Array = NDArray[Any]


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the whole model, secret parameters included, in one step (never half a file)."""
    _write_atomically(Path(path), encode(graph))


def load(path: str | os.PathLike[str], *, expected_hash: str | None = None) -> Graph:
    """Read a model file. Raises MalformedModel and its kin, InvalidGraph, OSError."""
    size = Path(path).stat().st_size
    if size > MAX_FILE:
        raise MalformedModel("model file", got=f"{size} bytes", expected=f"<= {MAX_FILE}")
    return decode(Path(path).read_bytes(), expected_hash=expected_hash)


def encode(graph: Graph) -> bytes:
    """The bytes of the model file. Raises MissingParameters on a public graph."""
    parts = to_parts(graph)
    tensors: dict[str, Array] = {
        "tables": np.frombuffer(parts.tables, "<i2"),
        "multipliers": np.frombuffer(parts.multipliers, np.uint8),
        "salt": np.frombuffer(graph.salt, np.uint8),
    }
    for name, array in graph.parameters.items():
        packed = _pack(array) if name.endswith(".weight") else None
        if packed is None:
            tensors[name] = array
        else:
            base = name.removesuffix(".weight")
            tensors[f"{base}.codes"], tensors[f"{base}.codebook"] = packed
    metadata = {
        "format": FORMAT,
        "graph": parts.graph.decode(),
        "commitment": graph.commitment.hex(),
        "hash": graph.hash,
    }
    return write_tensors(tensors, metadata)


def decode(data: bytes, *, expected_hash: str | None = None) -> Graph:
    """Inverse of ``encode``. Raises MalformedModel, HashMismatch, UnsupportedVersion,
    InvalidGraph, OverflowRisk."""
    tensors, metadata = read_tensors(data)
    got = metadata.get("format", "nothing")
    if got != FORMAT:
        kind = UnsupportedVersion if got.startswith("secure-quant/") else MalformedModel
        raise kind("format", got=got[:80], expected=FORMAT)
    try:
        parts = PublicParts(
            metadata["graph"].encode(),
            tensors.pop("tables").astype("<i2", casting="equiv").tobytes(),
            tensors.pop("multipliers").astype(np.uint8, casting="equiv").tobytes(),
        )
        salt = tensors.pop("salt").tobytes()
        commitment = bytes.fromhex(metadata["commitment"])
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedModel("model file lacks a part or has it in another type") from error
    if len(commitment) != 32 or len(salt) not in (0, 32):
        raise MalformedModel("commitment and salt", got=(len(commitment), len(salt)), expected="32")
    graph = from_parts(parts, parameters=_unpack(parts, tensors), salt=salt, commitment=commitment)
    for claimed in (metadata.get("hash"), expected_hash):
        if claimed is not None and claimed != graph.hash:
            raise HashMismatch("model", got=graph.hash, expected=claimed[:64])
    return graph


def write_tensors(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of little-endian integer arrays."""
    whole = {name: np.array(array, order="C") for name, array in tensors.items()}
    return safetensors.numpy.save(whole, metadata=dict(metadata))


def read_tensors(data: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors (read-only views of ``data``) and metadata of a safetensors file.

    Every size is checked against the length of ``data`` before anything is made of it.
    Raises MalformedModel.
    """
    head = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= head <= min(MAX_HEADER, len(data) - 8):
        raise MalformedModel("safetensors header", got=f"{len(data)} bytes", expected="a whole file")
    try:
        header = json.loads(data[8 : 8 + head])
        metadata = header.pop("__metadata__", {})
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        body = memoryview(data)[8 + head :]
        tensors: dict[str, Array] = {}
        place = 0
        for name, entry in entries:
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            shape = tuple(entry["shape"])
            start, stop = entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 8
            if not whole or start != place or stop - start != prod(shape) * dtype.itemsize:
                raise MalformedModel(f"tensor {name[:80]!r}", expected="offsets that fit its shape")
            tensors[name] = np.frombuffer(body[start:stop], dtype).reshape(shape)
            place = stop
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise MalformedModel("safetensors header", got="one that cannot be read") from error
    if place != len(body):
        raise MalformedModel("safetensors data", got=f"{len(body)} bytes", expected=f"{place}")
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in metadata.items()):
        raise MalformedModel("safetensors metadata", expected="strings")
    return tensors, metadata


def _pack(weight: Array) -> tuple[Array, Array] | None:
    """(codes, codebook) of int8[out, ...] where every row, or the whole, has at most 16 distinct
    values and that is the smaller form; None otherwise."""
    rows = weight.reshape(len(weight), -1)
    for groups in (rows.reshape(1, -1), rows):
        books = [np.unique(group) for group in groups]
        count = len(books) * 16 + (weight.size + 1) // 2
        if max(len(book) for book in books) > 16 or count >= weight.size:
            continue
        codebook = np.zeros((len(books), 16), np.int8)
        codes = np.zeros(groups.shape, np.uint8)
        for i, book in enumerate(books):
            codebook[i, : len(book)] = book
            codes[i] = np.searchsorted(book, groups[i])
        flat = np.append(codes.reshape(-1), np.zeros(weight.size % 2, np.uint8))
        return flat[0::2] | (flat[1::2] << 4), codebook
    return None


def _unpack(parts: PublicParts, tensors: dict[str, Array]) -> dict[str, Array]:
    """Parameters with coded weights decoded; the nodes say their shapes."""
    shapes = parameter_shapes(parse_nodes(parts))
    parameters: dict[str, Array] = {}
    for name, array in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind == "codebook":
            continue
        if kind != "codes":
            parameters[name] = array
            continue
        weight, book = f"{base}.weight", tensors.get(f"{base}.codebook")
        shape = shapes.get(weight, ((), ""))[0]
        fits = (
            book is not None
            and len(shape) >= 2
            and (array.dtype, book.dtype) == (np.uint8, np.int8)
            and array.shape == ((prod(shape) + 1) // 2,)
            and book.shape in ((1, 16), (shape[0], 16))
        )
        if book is None or not fits:
            raise MalformedModel(f"codes of {base[:80]!r}", got=array.shape, expected=shape)
        codes = np.stack([array & 15, array >> 4], 1).reshape(-1)[: prod(shape)]
        rows = codes.reshape(len(book), -1)
        parameters[weight] = np.take_along_axis(book, rows, 1).reshape(shape)
    return parameters


def _write_atomically(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
