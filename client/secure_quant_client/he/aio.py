"""HeClient for asyncio: the same arguments, the same answers, the same errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.transport import Limits, Security
from secure_quant.wire.gen.secure_inference_pb2 import GetModelResponse
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client.base import Deadline
from secure_quant_client.connection import AsyncIntegerClient
from secure_quant_client.he.client import HE
from secure_quant_client.he.model import HeModel, Meter
from secure_quant_client.he.walk import Request, Values, Walk, walk
from secure_quant_client.stats import Inference, InferenceStats

__all__ = ["AsyncHeClient"]


class AsyncHeClient(AsyncIntegerClient[HeModel]):
    """See HeClient. Make it inside the event loop that uses it; cryptography runs in a thread, so
    that the loop stays free."""

    def __init__(
        self,
        target: str,
        *,
        tls: Security,
        expected_hash: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
        stock: int = 2,
    ) -> None:
        super().__init__(
            [target], HE, tls=tls, expected_hash=expected_hash, token=token, limits=limits
        )
        self._stub: SecureInferenceServiceStub = self._stubs[0]
        self._stock_size = stock

    async def close(self) -> None:
        """Give up the connection and every key made ahead."""
        await super().close()
        if self._model is not None:
            await asyncio.to_thread(self._model.stock.close)

    async def prepare(self, batch: int = 1, *, timeout: float | None = None) -> None:
        """Connect, and make the stock for ``batch`` full now rather than in the background."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            model = await self._connect(deadline)
            await asyncio.to_thread(model.check, batch, deadline)
            await asyncio.to_thread(model.stock.fill, batch, deadline)

    async def trace_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> Values:
        """As ``infer_int8``, with every node's integers by name: this client sees them all."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            return (await self._trace(q, deadline))[0]

    async def _infer(self, q: NDArray[Any], deadline: Deadline) -> Inference[np.int64]:
        values, stats = await self._trace(q, deadline)
        return Inference(values[(await self._connect(deadline)).graph.output.name], stats)

    async def _trace(self, q: NDArray[Any], deadline: Deadline) -> tuple[Values, InferenceStats]:
        model = await self._connect(deadline)
        meter = Meter(len(q))
        parts = [await self._walk(model, part, deadline, meter) for part in model.parts(q)]
        return model.joined(parts), meter.stats()

    async def _walk(
        self, model: HeModel, q: NDArray[np.int64], deadline: Deadline, meter: Meter
    ) -> Values:
        await asyncio.to_thread(model.check, len(q), deadline)
        with model.stock.session(len(q)) as session:
            walking = walk(model.graph, session, q)
            step = await asyncio.to_thread(_advance, walking, None)
            while isinstance(step, list):
                start = time.perf_counter()
                answers = await self._evaluate(model, step, deadline)
                meter.round(step, answers, time.perf_counter() - start)
                step = await asyncio.to_thread(_advance, walking, answers)
            return step

    async def _evaluate(
        self, model: HeModel, requests: list[Request], deadline: Deadline
    ) -> list[bytes]:
        """All requests at once; the answers in their order."""
        calls = [(self._stub.EvaluateLinear, model.message(request)) for request in requests]
        return [answer.ciphertexts for answer in await self._ask(calls, deadline)]

    def _receive(self, answers: Sequence[GetModelResponse]) -> HeModel:
        return HeModel.receive(
            answers[0].info,
            self._expected_hash,
            message_bytes=self._limits.message_bytes,
            stock=self._stock_size,
        )


def _advance(walking: Walk, answers: list[bytes] | None) -> list[Request] | Values:
    """The next requests, or the values at the end; StopIteration cannot cross a thread's future."""
    try:
        return next(walking) if answers is None else walking.send(answers)
    except StopIteration as done:
        values: Values = done.value
        return values
