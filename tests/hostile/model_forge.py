"""Model files bent on purpose: each builder starts from honest parts and breaks one of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from vectors.make_tiny_model import PATH

from secure_quant.ir import artifact

HONEST = PATH.read_bytes()


def container(header: Any, body: bytes = b"") -> bytes:
    """A safetensors file with any header: an object, or text as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def parts() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    tensors, metadata = artifact.read_tensors(HONEST)
    return dict(tensors), dict(metadata)


def with_tensors(**changed: np.ndarray | None) -> bytes:
    """The honest file with arrays replaced, added or (None) left out; ``__`` stands for a dot."""
    tensors, metadata = parts()
    for name, array in changed.items():
        tensors.pop(name.replace("__", "."), None)
        if array is not None:
            tensors[name.replace("__", ".")] = array
    return artifact.write_tensors(tensors, metadata)


def with_metadata(**changed: str | None) -> bytes:
    tensors, metadata = parts()
    merged = {**metadata, **changed}
    return artifact.write_tensors(tensors, {k: v for k, v in merged.items() if v is not None})


def with_graph(text: bytes, *, tables: bool = True) -> bytes:
    """Another graph, without its parameters and under a commitment and hash that fit it."""
    tensors, metadata = parts()
    if not tables:
        tensors["tables"] = tensors["tables"][:0]
    tensors = {
        "graph": np.frombuffer(text, np.uint8), "tables": tensors["tables"],
        "multipliers": tensors["multipliers"], "salt": np.zeros(0, np.uint8),
    }  # fmt: skip
    wide = tensors["tables"].astype("<i2").tobytes()
    public = b"".join(
        len(p).to_bytes(8, "little") + p for p in (text, wide, tensors["multipliers"].tobytes())
    )
    commitment = bytes.fromhex(metadata["commitment"])
    digest = hashlib.sha256(
        b"secure_quant model v1\0" + hashlib.sha256(public).digest() + commitment
    )
    return artifact.write_tensors(tensors, {**metadata, "hash": digest.hexdigest()})


def graph_text() -> bytes:
    return parts()[0]["graph"].tobytes()


def with_document(change, *, tables: bool = True) -> bytes:
    """The honest nodes after ``change(document)``, again as canonical JSON."""
    document = json.loads(graph_text())
    change(document)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return with_graph(text.encode(), tables=tables)


def with_field(place: int, field: str, value: Any) -> bytes:
    return with_document(lambda document: document["nodes"][place].update({field: value}))
