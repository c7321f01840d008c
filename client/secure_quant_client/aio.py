"""HeClient for asyncio: the same arguments, the same answers, the same errors."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant import reference
from secure_quant.errors import ServiceError
from secure_quant.ir import Graph
from secure_quant.transport import Limits, Security, aio_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client.base import Deadline, call_metadata
from secure_quant_client.he_model import HeModel, Meter, joined
from secure_quant_client.stats import InferenceStats
from secure_quant_client.walk import Request, Values, Walk, walk

__all__ = ["AsyncHeClient"]


class AsyncHeClient:
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
        self._limits, self._stock_size = limits or Limits(), stock
        self._metadata = call_metadata(tls, token)
        self._channel = aio_channel(target, tls, server_role="he", limits=self._limits)
        self._stub = SecureInferenceServiceStub(self._channel)
        self._expected_hash = expected_hash
        self._model: HeModel | None = None
        self._lock = asyncio.Lock()
        self._stats: InferenceStats | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncHeClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up the connection and every key made ahead."""
        self._closed = True
        await self._channel.close()
        if self._model is not None:
            await asyncio.to_thread(self._model.stock.close)

    async def prepare(self, batch: int = 1) -> None:
        """Connect, and make the stock for ``batch`` full now rather than in the background."""
        model = await self._connect(Deadline(self._limits.deadline_s))
        await asyncio.to_thread(model.stock.fill, batch)

    async def graph(self) -> Graph:
        """The public graph, fetched at first use. Raises HashMismatch and the like."""
        return (await self._connect(Deadline(self._limits.deadline_s))).graph

    @property
    def stats(self) -> InferenceStats:
        """Of the inference that ended last. Raises ServiceError before the first."""
        if self._stats is None:
            raise ServiceError("no inference yet")
        return self._stats

    async def infer(self, x: ArrayLike, *, timeout: float | None = None) -> NDArray[np.float32]:
        """float[batch, *input shape] -> float32[batch, *output shape].

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity).
        """
        graph = await self.graph()
        q = reference.quantize_input(graph, x)
        return reference.dequantize(graph, await self.infer_int8(q, timeout=timeout))

    async def infer_int8(
        self, q: NDArray[Any], *, timeout: float | None = None
    ) -> NDArray[np.int64]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]."""
        values = await self.trace_int8(q, timeout=timeout)
        return values[(await self.graph()).output.name]

    async def trace_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> Values:
        """As ``infer_int8``, with every node's integers by name: this client sees them all."""
        deadline = Deadline(self._limits.deadline_s if timeout is None else timeout)
        model = await self._connect(deadline)
        meter = Meter(len(q))
        parts = [await self._walk(model, part, deadline, meter) for part in model.parts(q)]
        self._stats = meter.stats()
        return joined(parts)

    async def _walk(
        self, model: HeModel, q: NDArray[np.int64], deadline: Deadline, meter: Meter
    ) -> Values:
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
        calls = [
            self._stub.EvaluateLinear(
                model.message(request), timeout=deadline.remaining(), metadata=self._metadata
            )
            for request in requests
        ]
        try:
            return [(await call).ciphertexts for call in calls]
        except grpc.RpcError as error:
            raise raised(error) from error
        finally:
            for call in calls:
                call.cancel()  # those that are not done

    async def _connect(self, deadline: Deadline) -> HeModel:
        async with self._lock:
            if self._closed:
                raise ServiceError("the client is closed")
            if self._model is None:
                request = GetModelRequest(model_hash=self._expected_hash or "")
                try:
                    answer = await self._stub.GetModel(
                        request, timeout=deadline.remaining(), metadata=self._metadata
                    )
                except grpc.RpcError as error:
                    raise raised(error) from error
                self._model = HeModel.receive(
                    answer.info,
                    self._expected_hash,
                    message_bytes=self._limits.message_bytes,
                    stock=self._stock_size,
                )
            return self._model


def _advance(walking: Walk, answers: list[bytes] | None) -> list[Request] | Values:
    """The next requests, or the values at the end; StopIteration cannot cross a thread's future."""
    try:
        return next(walking) if answers is None else walking.send(answers)
    except StopIteration as done:
        values: Values = done.value
        return values
