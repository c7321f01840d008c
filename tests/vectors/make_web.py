"""Writes ``web.json``: inferences under secret sharing as a browser makes them, byte by byte.

Run by hand: ``python tests/vectors/make_web.py``. ``test_web.py`` checks that it still writes the
committed bytes, with the Python client's own code and the plaintext reference;
``client/web/test/vectors.test.ts`` that the TypeScript client, whose AES, SHA-256, protobuf and
arithmetic are others, reads and makes the same ones.

Of each case: how much work it is; the parties' answers to GetModel; inputs by name as float64;
their int8; request id and seed; both requests; both answers; the integers that they open to;
outputs by name as float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conformance import cases, sum_cases
from conformance.builder import Net
from secure_quant import Graph, reference
from secure_quant.errors import BudgetExceeded, MalformedMessage, SecureQuantError
from secure_quant.ir.effort import effort
from secure_quant.keystream import Keystream
from secure_quant.wire import SHARING, connect_error, info_to_proto, to_status
from secure_quant.wire.gen import share_inference_pb2 as pb

PATH = Path(__file__).with_name("web.json")
SHARED = (
    cases.linear, cases.mlp, cases.pools, cases.residual, cases.output_activation, cases.moves_only,
    cases.attention, cases.two_heads, sum_cases.sums_by_channel, cases.ports, cases.one_port_each,
    cases.gathers,
)  # fmt: skip


def ties() -> Graph:
    """A scale that is no power of two, and one output scale for each channel."""
    net = Net(7, (6,))
    net.linear(5, largest=3)
    return net.done(salt=bytes(32), per_channel=True)


def write() -> str:
    builders = (ties, *SHARED)
    made = {build.__name__: _case(build(), number) for number, build in enumerate(builders)}
    errors = [
        BudgetExceeded("query budget", got="3 samples", expected="<= 2 now, 5 in 60 s"),
        MalformedMessage("request id", got="one used before", expected="a fresh one"),
    ]
    document = {
        "generator": "tests/vectors/make_web.py",
        "verifier": "client/web/test/vectors.test.ts",
        "cases": made,
        "errors": [_error(each) for each in errors],
    }
    return json.dumps(document, indent=1) + "\n"


def _case(graph: Graph, number: int) -> dict[str, Any]:
    batch = 1 + number % 3
    rng = np.random.default_rng(number)
    named = {port.name: _input(port, batch, rng) for port in graph.input_ports}
    x: Any = named if graph.has_ports else next(iter(named.values()))
    q = reference.quantize_input(graph, x)
    request_id, seed = _bytes(16, number, 1), _bytes(32, number, 2)
    stream = Keystream(seed).bytes(q.size)
    share = (q.reshape(-1).view(np.uint8) ^ stream).tobytes()
    common = {"model_hash": graph.hash, "request_id": request_id, "batch": batch}
    requests = [
        pb.InferRequest(**common, sharing=SHARING, share=share),
        pb.InferRequest(**common, sharing=SHARING, seed=seed),
    ]
    y = reference.run_int(graph, q).astype(np.int64)
    first = np.frombuffer(_bytes(8 * y.size, number, 3), "<u8")
    second = y.reshape(-1).view(np.uint64) - first
    answers = [
        pb.InferResponse(share=part.astype("<u8").tobytes(), stats=_stats(number, party))
        for party, part in enumerate((first, second))
    ]
    work = effort(graph)
    outputs = reference.named(graph, reference.dequantize(graph, y))
    return {
        "hash": graph.hash,
        "batch": batch,
        "effort": {"products": work.products, "lookups": work.lookups, "depth": work.depth},
        "models": [_model(graph, party) for party in (0, 1)],
        "inputs": {name: _floats(array, "<f8") for name, array in named.items()},
        "quantized": q.tobytes().hex(),
        "requestId": request_id.hex(),
        "seed": seed.hex(),
        "requests": [each.SerializeToString().hex() for each in requests],
        "answers": [each.SerializeToString().hex() for each in answers],
        "integers": [str(each) for each in y.reshape(-1).tolist()],
        "outputs": {
            name: {"shape": list(array.shape), "data": _floats(array, "<f4")}
            for name, array in outputs.items()
        },
    }


def _input(port: Any, batch: int, rng: np.random.Generator) -> np.ndarray:
    shape = (batch, *port.asked)
    if port.dtype == "bool":
        return rng.integers(0, 2, shape)
    if port.dtype == "int64":
        return rng.integers(0, port.rows or 8, shape)
    # Ties, values beyond both ends, and values between.
    halves = (rng.integers(-300, 300, shape) + 0.5) * port.value.scale
    return np.where(
        rng.integers(0, 2, shape) == 1, halves, rng.normal(0, 60, shape) * port.value.scale
    )


def _bytes(count: int, number: int, stretch: int) -> bytes:
    """Of a test alone, where bytes have to come again."""
    return Keystream(number.to_bytes(32, "big"), stretch).bytes(count).tobytes()


def _stats(number: int, party: int) -> pb.InferStats:
    return pb.InferStats(
        rounds=number, online_bytes_sent=2**40 + party, offline_bytes=number * 1000 + party,
        engine_microseconds=1500 * (party + 1),
    )  # fmt: skip


def _model(graph: Graph, party: int) -> str:
    # As servers answer, but for the plan, which the client of secret sharing does not read.
    info = info_to_proto(graph, b"{}")
    answer = pb.ShareInferenceServiceGetModelResponse(
        info=info, party=party, sharing=SHARING, batch=64
    )
    return answer.SerializeToString().hex()


def _floats(array: np.ndarray, dtype: str) -> str:
    return array.astype(dtype).tobytes().hex()


def _error(error: SecureQuantError) -> dict[str, Any]:
    http, body = connect_error(to_status(error))
    about = {name: getattr(error, name) for name in ("what", "got", "expected")}
    return {"status": http, "body": body.decode(), **about}


def messages(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(protobuf message, its bytes in hex) of everything in the file."""
    for case in document["cases"].values():
        for name, kind in (
            ("models", "ShareInferenceServiceGetModelResponse"),
            ("requests", "InferRequest"),
            ("answers", "InferResponse"),
        ):
            for data in case[name]:
                yield kind, data


if __name__ == "__main__":
    PATH.write_text(write())
    print(PATH.name, len(PATH.read_text()))
