"""Requests of the protocol, and answers against the reference."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from patience import ample

from conformance.port_cases import ports
from secure_quant import reference
from secure_quant.wire.gen import open_inference_pb2 as pb

__all__ = ["DATATYPES", "GRAPH", "answered", "asking", "equal", "given", "ran"]

GRAPH = ports()


def ran(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(ample(30)):
            await test()

    asyncio.run(bounded())


def given(samples: int = 3, seed: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "mask": rng.integers(0, 2, (samples, 3)).astype(bool),
        "words": rng.integers(0, 20, (samples, 2)),
        "row": rng.normal(0, 2, (samples, 10)).astype(np.float32),
        "picture": rng.normal(4, 2, (samples, 2, 6, 6)).astype(np.float32),
    }


DATATYPES = {"mask": "BOOL", "words": "INT64", "row": "FP32", "picture": "FP32"}


def asking(arrays: dict[str, np.ndarray], **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="model", **fields)
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=DATATYPES[name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def answered(response: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    raw = response.raw_output_contents
    return {
        each.name: np.frombuffer(raw[i], "<f4").reshape(tuple(each.shape)) if raw
        else np.array(each.contents.fp32_contents, np.float32).reshape(tuple(each.shape))
        for i, each in enumerate(response.outputs)
    }  # fmt: skip


def equal(found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    want = reference.run(GRAPH, arrays)
    assert list(found) == list(want)
    for name, value in want.items():
        assert np.array_equal(found[name], value), name
