"""Reads ``tiny_model.sq`` with a JSON parser, struct and SHA-256 alone: no project code, no numpy.

``python tests/vectors/verify_tiny_model.py`` prints what it found and fails on the first byte that
docs/spec/file-format.md does not explain.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

PATH = Path(__file__).with_name("tiny_model.sq")


def check(ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(what)


def len8(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def read(data: bytes) -> dict:
    """Every part of the file, decoded: metadata, nodes with their tables, parameters, salt."""
    (head,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + head])
    metadata = header.pop("__metadata__")
    place, body, raw = 0, data[8 + head :], {}
    for name, entry in header.items():  # the writer's order is that of the data
        start, stop = entry["data_offsets"]
        check(start == place, f"{name} lies elsewhere")
        raw[name], place = body[start:stop], stop
    check(place == len(body), "bytes left over")
    width = {"I8": "b", "I16": "<h"}[header["tables"]["dtype"]]
    tables = [v for (v,) in struct.iter_unpack(width, raw["tables"])]
    multipliers = list(raw["multipliers"])
    document = json.loads(raw["graph"])
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    check(canonical == raw["graph"], "the graph is not canonical")
    wide = struct.pack(f"<{len(tables)}h", *tables)
    public = len8(raw["graph"]) + len8(wide) + len8(raw["multipliers"])
    for node in document["nodes"]:
        for field, entries in (("table", tables), ("multiplier", multipliers)):
            if field in node:
                count = node[field]
                node[field] = entries[:count]
                del entries[:count]
    check(not tables and not multipliers, "entries left over")
    parameters = {n: p for node in document["nodes"] for n, p in _parameters(node, raw)}
    commitment = hashlib.sha256(b"secure_quant parameters v1\0" + raw["salt"])
    for name, (dtype, shape, content) in sorted(parameters.items()):
        text = ",".join(map(str, shape))
        commitment.update(len8(f"{name}\0{dtype}\0{text}\0".encode()) + len8(content))
    check(commitment.hexdigest() == metadata["commitment"], "the commitment does not open")
    inner = hashlib.sha256(public).digest() + commitment.digest()
    model = hashlib.sha256(b"secure_quant model v1\0" + inner).hexdigest()
    check(model == metadata["hash"], "the hash is another model's")
    return {
        "hash": model, "nodes": document["nodes"], "salt": raw["salt"],
        "parameters": {n: (shape, _numbers(d, c)) for n, (d, shape, c) in parameters.items()},
    }  # fmt: skip


def _parameters(node: dict, raw: dict[str, bytes]):
    if node["op"] != "Linear":
        return
    name, shape = node["name"], (node["out_features"], node["in_features"])
    if f"{name}.weight" in raw:
        weight = raw[f"{name}.weight"]
    else:
        book, codes = raw[f"{name}.codebook"], raw[f"{name}.codes"]
        check(len(book) == 16, "this vector has one row of codes")
        halves = [half for byte in codes for half in (byte & 15, byte >> 4)]
        weight = bytes(book[code] for code in halves[: shape[0] * shape[1]])
    check(len(weight) == shape[0] * shape[1], f"size of {name}.weight")
    yield f"{name}.weight", ("|i1", shape, weight)
    if node["bias"]:
        yield f"{name}.bias", ("<i4", shape[:1], raw[f"{name}.bias"])


def _numbers(dtype: str, content: bytes) -> list[int]:
    code = {"|i1": "b", "<i4": "<i"}[dtype]
    return [v for (v,) in struct.iter_unpack(code, content)]


def infer(model: dict, x: list[int]) -> list[int]:
    """The integers of the tiny model for one int8 input, in plain Python."""
    nodes = {node["op"] + node["name"]: node for node in model["nodes"]}
    requantize, hidden = nodes["Requantizeq1"], []
    weight, bias = model["parameters"]["fc1.weight"][1], model["parameters"]["fc1.bias"][1]
    for o in range(2):
        acc = sum(weight[3 * o + i] * (x[i] - nodes["Inputx"]["zero_point"]) for i in range(3))
        scaled = (acc + bias[o]) * requantize["multiplier"][o] + requantize["offset"]
        place = min(max(scaled // 2 ** requantize["shift"], 0), len(requantize["table"]) - 1)
        hidden.append(requantize["table"][place] - requantize["zero_point"])
    wide, last = hidden * 10, model["parameters"]["fc2.weight"][1]
    return [sum(last[20 * o + i] * wide[i] for i in range(20)) for o in range(2)]


if __name__ == "__main__":
    found = read(PATH.read_bytes())
    print(found["hash"])
    print(infer(found, [1, 2, 3]))
