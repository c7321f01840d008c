"""Inference on secret-shared inputs at two parties that do not collude."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant import reference
from secure_quant.errors import ConfigError, ServiceError
from secure_quant.ir import Graph
from secure_quant.transport import Limits, Security, aio_channel, sync_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.share_inference_pb2 import (
    InferResponse,
    ShareInferenceServiceGetModelRequest,
)
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceStub
from secure_quant_client.base import Deadline, call_metadata
from secure_quant_client.mpc_model import Meter, MpcModel, Part
from secure_quant_client.stats import InferenceStats

__all__ = ["AsyncMpcClient", "MpcClient"]

IN_FLIGHT = 4
"""Parts of one large input that are under way at once."""


class MpcClient:
    """A connection to the two parties; for threads. See AsyncMpcClient.

    targets        ``host:port`` of party 0 and of party 1.
    tls            Tls(ca=..., cert=..., key=...); InsecurePlaintext() in so many words.
    expected_hash  the model to ask for, and the only one accepted. Without it the parties choose,
                   and they must serve a single model, the same one.
    token          where the parties ask for one besides the certificate.
    limits         largest message, default deadline.

    Neither party sees inputs, activations, outputs or weights unless the two collude with each
    other or with the dealer.
    Every method may raise ServiceError's leaves (PeerUnavailable, DeadlineExceeded, ...) and
    ProtocolError's; a failed inference is not repeated, and may be by the caller.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        tls: Security,
        expected_hash: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._metadata = call_metadata(tls, token)
        self._channels = [
            sync_channel(target, tls, server_role=f"party{party}", limits=self._limits)
            for party, target in enumerate(_two(targets))
        ]
        self._stubs = [ShareInferenceServiceStub(channel) for channel in self._channels]
        self._expected_hash = expected_hash
        self._model: MpcModel | None = None
        self._lock = threading.Lock()
        self._stats: InferenceStats | None = None

    def __enter__(self) -> MpcClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connections."""
        for channel in self._channels:
            channel.close()

    @property
    def graph(self) -> Graph:
        """The public graph, fetched at first use. Raises HashMismatch and the like."""
        return self._connect(Deadline(self._limits.deadline_s)).graph

    @property
    def stats(self) -> InferenceStats:
        """Of the inference that ended last. Raises ServiceError before the first."""
        if self._stats is None:
            raise ServiceError("no inference yet")
        return self._stats

    def infer(self, x: ArrayLike, *, timeout: float | None = None) -> NDArray[np.float32]:
        """float[batch, *input shape] -> float32[batch, *output shape].

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity).
        """
        q = reference.quantize_input(self.graph, x)
        return reference.dequantize(self.graph, self.infer_int8(q, timeout=timeout))

    def infer_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> NDArray[np.int64]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]."""
        deadline = Deadline(timeout or self._limits.deadline_s)
        model, meter = self._connect(deadline), Meter(len(q))
        found: list[NDArray[np.int64]] = []
        under_way: deque[tuple[Part, list[Any]]] = deque()
        try:
            for part in model.parts(q):
                if len(under_way) == IN_FLIGHT:
                    found.append(self._finish(model, meter, *under_way.popleft()))
                under_way.append((part, self._start(part, deadline)))
            while under_way:
                found.append(self._finish(model, meter, *under_way.popleft()))
        finally:
            for _, calls in under_way:
                _cancel(calls)
        self._stats = meter.stats()
        return np.concatenate(found) if len(found) > 1 else found[0]

    def _start(self, part: Part, deadline: Deadline) -> list[Any]:
        left = deadline.remaining()
        return [
            stub.Infer.future(request, timeout=left, metadata=self._metadata)
            for stub, request in zip(self._stubs, part.requests, strict=True)
        ]

    def _finish(
        self, model: MpcModel, meter: Meter, part: Part, calls: list[Any]
    ) -> NDArray[np.int64]:
        try:
            answers: list[InferResponse] = [call.result() for call in calls]
        except grpc.RpcError as error:
            raise raised(error) from error
        finally:
            _cancel(calls)
        meter.part(part, answers)
        return model.open(part, answers)

    def _connect(self, deadline: Deadline) -> MpcModel:
        with self._lock:
            if self._model is None:
                request = ShareInferenceServiceGetModelRequest(model_hash=self._expected_hash or "")
                calls = [
                    stub.GetModel.future(
                        request, timeout=deadline.remaining(), metadata=self._metadata
                    )
                    for stub in self._stubs
                ]
                try:
                    answers = [call.result() for call in calls]
                except grpc.RpcError as error:
                    raise raised(error) from error
                finally:
                    _cancel(calls)
                self._model = MpcModel.receive(answers, self._expected_hash)
            return self._model


class AsyncMpcClient:
    """See MpcClient. Make it inside the event loop that uses it."""

    def __init__(
        self,
        targets: Sequence[str],
        *,
        tls: Security,
        expected_hash: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._metadata = call_metadata(tls, token)
        self._channels = [
            aio_channel(target, tls, server_role=f"party{party}", limits=self._limits)
            for party, target in enumerate(_two(targets))
        ]
        self._stubs = [ShareInferenceServiceStub(channel) for channel in self._channels]
        self._expected_hash = expected_hash
        self._model: MpcModel | None = None
        self._lock = asyncio.Lock()
        self._stats: InferenceStats | None = None

    async def __aenter__(self) -> AsyncMpcClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up the connections."""
        for channel in self._channels:
            await channel.close()

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
        deadline = Deadline(timeout or self._limits.deadline_s)
        model, meter = await self._connect(deadline), Meter(len(q))
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(part: Part) -> NDArray[np.int64]:
            async with room:
                return await self._infer_part(model, meter, part, deadline)

        tasks = [asyncio.ensure_future(one(part)) for part in model.parts(q)]
        try:
            found = [await task for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._stats = meter.stats()
        return np.concatenate(found) if len(found) > 1 else found[0]

    async def _infer_part(
        self, model: MpcModel, meter: Meter, part: Part, deadline: Deadline
    ) -> NDArray[np.int64]:
        left = deadline.remaining()
        calls: list[Any] = [
            stub.Infer(request, timeout=left, metadata=self._metadata)
            for stub, request in zip(self._stubs, part.requests, strict=True)
        ]
        try:
            answers: list[InferResponse] = [await call for call in calls]
        except grpc.RpcError as error:
            raise raised(error) from error
        finally:
            _cancel(calls)
        meter.part(part, answers)
        return model.open(part, answers)

    async def _connect(self, deadline: Deadline) -> MpcModel:
        async with self._lock:
            if self._model is None:
                request = ShareInferenceServiceGetModelRequest(model_hash=self._expected_hash or "")
                calls: list[Any] = [
                    stub.GetModel(request, timeout=deadline.remaining(), metadata=self._metadata)
                    for stub in self._stubs
                ]
                try:
                    answers = [await call for call in calls]
                except grpc.RpcError as error:
                    raise raised(error) from error
                finally:
                    _cancel(calls)
                self._model = MpcModel.receive(answers, self._expected_hash)
            return self._model


def _two(targets: Sequence[str]) -> Sequence[str]:
    if isinstance(targets, str) or len(targets) != 2:
        raise ConfigError("targets", got=targets, expected="[party 0's host:port, party 1's]")
    return targets


def _cancel(calls: Sequence[Any]) -> None:
    for call in calls:
        call.cancel()  # those that are not done
