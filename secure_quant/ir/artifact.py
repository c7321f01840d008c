"""The model file: one safetensors file, no pickle. ``docs/spec/file-format.md`` states it.

Metadata: ``format``, ``commitment`` and ``hash`` in hex.
Tensors: ``graph`` (canonical JSON, a byte each), ``tables`` (int8 if every entry fits, else int16),
``multipliers``, ``salt``, and per Linear or Conv2d ``NAME.bias`` and either ``NAME.weight`` (int8)
or, where that is smaller, ``NAME.codes`` (two 4-bit codes a byte, low half first) with
``NAME.codebook`` (int8[1 or out_channels, 16]); per LookupPort ``NAME.rows`` (int8).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from secure_quant.errors import HashMismatch, MalformedModel, ModelError, UnsupportedVersion
from secure_quant.ir.codec import VERSIONS, PublicParts, parse_nodes, version_of
from secure_quant.ir.container import MAX_FILE, Array, read_tensors, write_tensors
from secure_quant.ir.graph import Graph
from secure_quant.ir.ops import LookupPort, Node
from secure_quant.ir.public import check_canonical, to_parts
from secure_quant.ir.verify import parameter_shapes

__all__ = ["decode", "encode", "load", "read_tensors", "save", "write_tensors"]

FORMATS = {version: f"secure-quant/{version}" for version in VERSIONS}
_METADATA = {"format", "commitment", "hash"}


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the whole model, secret parameters included, in one step (never half a file).

    The file can be read by its owner alone. Raises OSError.
    """
    _write_atomically(Path(path), encode(graph))


def load(path: str | os.PathLike[str], *, expected_hash: str | None = None) -> Graph:
    """Read a model file, whole or public. expected_hash: 64 hex digits, of the only model that is
    taken.

    Raises MalformedModel and its kin (HashMismatch, UnsupportedVersion), InvalidGraph, which name
    the file; OSError.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if size > MAX_FILE:
                raise MalformedModel("model file", got=f"{size} bytes", expected=f"<= {MAX_FILE}")
            return decode(file.read(MAX_FILE), expected_hash=expected_hash)
        except ModelError as error:
            raise error.at(path) from error


def encode(graph: Graph) -> bytes:
    """The bytes of the model file, a function of the graph alone: same nodes, parameters and salt,
    same bytes. A public graph gives a file without parameters and with an empty salt."""
    parts = to_parts(graph)
    tensors: dict[str, Array] = {
        # Not in the metadata, where each of its many quotes would be escaped.
        "graph": np.frombuffer(parts.graph, np.uint8),
        "tables": _narrowed(np.frombuffer(parts.tables, "<i2")),
        "multipliers": np.frombuffer(parts.multipliers, np.uint8),
        "salt": np.frombuffer(graph.salt, np.uint8),
    }
    for name, array in graph.lookups.items():
        tensors[f"{name}.rows"] = array
    for name, array in graph.parameters.items():
        packed = _pack(array) if name.endswith(".weight") else None
        if packed is None:
            tensors[name] = array
        else:
            base = name.removesuffix(".weight")
            tensors[f"{base}.codes"], tensors[f"{base}.codebook"] = packed
    metadata = {
        "format": FORMATS[version_of(graph.nodes)],
        "commitment": graph.commitment.hex(),
        "hash": graph.hash,
    }
    return write_tensors(tensors, metadata)


def decode(data: bytes | memoryview, *, expected_hash: str | None = None) -> Graph:
    """Inverse of ``encode``. Raises MalformedModel, HashMismatch, UnsupportedVersion,
    InvalidGraph, OverflowRisk."""
    tensors, metadata = read_tensors(data)
    got = metadata.get("format", "nothing")
    if got not in FORMATS.values():
        kind = UnsupportedVersion if got.startswith("secure-quant/") else MalformedModel
        raise kind("format", got=ascii(got[:80]), expected=" or ".join(FORMATS.values()))
    if set(metadata) != _METADATA:
        raise MalformedModel("metadata", got=f"{len(metadata)} names", expected=sorted(_METADATA))
    try:
        commitment = bytes.fromhex(metadata["commitment"])
    except ValueError as error:
        raise MalformedModel("commitment", got="text that is not hex") from error
    tables = _tables(tensors)
    text, multipliers, salt = (
        _flat(tensors, name, np.uint8) for name in ("graph", "multipliers", "salt")
    )
    if len(commitment) != 32 or len(salt) not in (0, 32):
        raise MalformedModel("commitment and salt", got=(len(commitment), len(salt)), expected="32")
    parts = PublicParts(text, tables, multipliers)
    nodes = parse_nodes(parts)
    if got != FORMATS[version_of(nodes)]:
        raise MalformedModel("format", got=got, expected=FORMATS[version_of(nodes)])
    ports = [node.name for node in nodes if isinstance(node, LookupPort)]
    lookups = {name: tensors.pop(f"{name}.rows") for name in ports if f"{name}.rows" in tensors}
    if len(lookups) < len(ports):
        raise MalformedModel("public tables", got=len(lookups), expected=len(ports))
    graph = Graph(nodes, _unpack(nodes, tensors), salt, commitment, lookups)
    check_canonical(graph, parts)
    for claimed in (metadata["hash"], expected_hash):
        if claimed is not None and claimed != graph.hash:
            raise HashMismatch("model", got=graph.hash, expected=ascii(claimed[:64]))
    return graph


def _narrowed(tables: Array) -> Array:
    """int8 where that holds every entry: half the bytes in a model without int16 activations."""
    narrow = tables.astype(np.int8)
    return narrow if np.array_equal(narrow, tables) else tables


def _tables(tensors: dict[str, Array]) -> bytes:
    """The tables as little-endian int16, which leave ``tensors``. Raises MalformedModel."""
    stored = tensors.get("tables")
    if stored is None or stored.dtype != np.int8:
        wide = np.frombuffer(_flat(tensors, "tables", np.int16), "<i2")
        if _narrowed(wide) is not wide:
            raise MalformedModel("tables", got="int16", expected="int8, which holds every entry")
        return wide.tobytes()
    return np.frombuffer(_flat(tensors, "tables", np.int8), np.int8).astype("<i2").tobytes()


def _flat(tensors: dict[str, Array], name: str, dtype: type[np.generic]) -> bytes:
    """Bytes of the vector ``name``, which leaves ``tensors``. Raises MalformedModel."""
    array = tensors.pop(name, None)
    if array is None or array.dtype != dtype or array.ndim != 1:
        got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
        raise MalformedModel(name, got=got, expected=f"a vector of {dtype.__name__}")
    return array.tobytes()


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


def _unpack(nodes: Sequence[Node], tensors: dict[str, Array]) -> dict[str, Array]:
    """Parameters with coded weights decoded; ``nodes`` say their shapes. Raises MalformedModel."""
    shapes = parameter_shapes(nodes)
    parameters: dict[str, Array] = {}
    books = {name: array for name, array in tensors.items() if name.endswith(".codebook")}
    for name, array in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind == "codes":
            weight = f"{base}.weight"
            if weight in tensors:
                raise MalformedModel(f"weight of {base[:80]!r}", got="two forms", expected="one")
            shape = shapes.get(weight, ((), ""))[0]
            parameters[weight] = _decoded(base, array, books.pop(f"{base}.codebook", None), shape)
        elif kind != "codebook":
            parameters[name] = array
    if books:
        raise MalformedModel("codebooks", got=f"{len(books)} without codes", expected="none")
    return parameters


def _decoded(base: str, codes: Array, book: Array | None, shape: tuple[int, ...]) -> Array:
    """int8 weight of ``shape`` from two codes a byte and a codebook of 16 entries a row."""
    count = prod(shape) if len(shape) in (2, 4) and min(shape) > 0 else 0
    if (
        book is None
        or not count
        or codes.dtype != np.uint8
        or book.dtype != np.int8
        or codes.shape != ((count + 1) // 2,)
        or book.shape not in ((1, 16), (shape[0], 16))
    ):
        raise MalformedModel(
            f"codes of {base[:80]!r}", got=codes.shape, expected=f"those of {shape}"
        )
    halves = np.empty((len(codes), 2), np.uint8)
    halves[:, 0], halves[:, 1] = codes & 15, codes >> 4
    rows = halves.reshape(-1)[:count].reshape(len(book), -1)
    weight = np.empty(rows.shape, np.int8)
    for i, row in enumerate(rows):  # by row: the index of a lookup takes 8 bytes an element
        weight[i] = book[i][row]
    return weight.reshape(shape)


def _write_atomically(path: Path, data: bytes) -> None:
    """All of ``data`` at ``path``, or nothing; readable by the owner alone."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(part).unlink()
        raise
