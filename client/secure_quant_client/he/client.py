"""Inference on encrypted inputs at one server (homomorphic encryption)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Unpack

from numpy.typing import NDArray

from secure_quant.errors import ConfigError
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest, GetModelResponse
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client.connection import (
    Connection,
    OneServer,
    Service,
)
from secure_quant_client.exact import AsyncIntegerClient, IntegerClient
from secure_quant_client.he.model import HeModel, Values

__all__ = ["HE", "AsyncHeClient", "HeClient"]

HE = Service(
    ("he",), SecureInferenceServiceStub, GetModelRequest,
    replicas="secure_quant.v1.SecureInferenceService",
)  # fmt: skip


class _Homomorphic(OneServer[HeModel]):
    """What both faces share."""

    _service = HE

    def __init__(self, target: str, *, stock: int = 2, **connection: Unpack[Connection]) -> None:
        if stock < 0:
            raise ConfigError("stock", got=stock, expected=">= 0")
        super().__init__(target, **connection)
        self._stock_size = stock

    def _receive(self, answers: Sequence[GetModelResponse]) -> HeModel:
        return HeModel.receive(
            answers[0].info,
            self._expected_hash,
            message_bytes=self._limits.message_bytes,
            stock=self._stock_size,
        )


class HeClient(_Homomorphic, IntegerClient[HeModel]):
    """A connection to one homomorphic-encryption server; for threads. See AsyncHeClient.

    target         ``host:port``. Replicas of the server may stand behind one name (a headless
                   Service): calls go to each in turn, and one that brings no answer goes to
                   another, the same bytes.
    tls            Tls(ca=..., cert=..., key=...); InsecurePlaintext() in so many words.
    expected_hash  the model to ask for, and the only one accepted. Without it the server chooses,
                   and it must serve a single model.
    token          where the server asks for one besides the certificate.
    limits         Limits(...): largest message, default deadline.
    stock          inferences whose keys and encryptions of zero are made ahead in the background,
                   for the batch sizes used last; 0 for none.

    The server never sees inputs, activations or outputs. This client sees each linear layer's
    integers, from which the weights can be worked out with enough queries: a model that must stay
    hidden belongs into MpcClient's mode.
    Every method may raise ServiceError's leaves (PeerUnavailable, DeadlineExceeded, ...) and
    ProtocolError's; a failed inference is not repeated, but for calls to replicas, above.
    """

    def close(self) -> None:
        """Give up the connection and every key made ahead."""
        super().close()
        if self._model is not None:
            self._model.stock.close()

    def prepare(self, batch: int = 1, *, timeout: float | None = None) -> None:
        """Connect, and make the stock for ``batch`` full now rather than in the background."""
        deadline = self._deadline(timeout)
        self._connect(deadline).prepare(batch, deadline)

    def trace_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> Values:
        """As ``infer_int8``, with every node's integers by name: this client sees them all."""
        deadline = self._deadline(timeout)
        return self._run(self._connect(deadline).trace(q, deadline), deadline)[0]


class AsyncHeClient(_Homomorphic, AsyncIntegerClient[HeModel]):
    """HeClient for asyncio: the same arguments, the same answers, the same errors. Make it inside
    the event loop that uses it; cryptography runs in a thread, so that the loop stays free."""

    _heavy = True

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
            await asyncio.to_thread(model.prepare, batch, deadline)

    async def trace_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> Values:
        """As ``infer_int8``, with every node's integers by name: this client sees them all."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            model = await self._connect(deadline)
            return (await self._run(model.trace(q, deadline), deadline))[0]
