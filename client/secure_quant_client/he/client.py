"""Inference on encrypted inputs at one server (homomorphic encryption)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.transport import Limits, Security
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest, GetModelResponse
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client.base import Deadline
from secure_quant_client.connection import IntegerClient, Service
from secure_quant_client.he.model import HeModel, Meter
from secure_quant_client.he.walk import Request, Values, walk
from secure_quant_client.stats import Inference, InferenceStats

__all__ = ["HE", "HeClient"]

HE = Service(("he",), SecureInferenceServiceStub, GetModelRequest)


class HeClient(IntegerClient[HeModel]):
    """A connection to one homomorphic-encryption server; for threads. See AsyncHeClient.

    target         ``host:port``.
    tls            Tls(ca=..., cert=..., key=...); InsecurePlaintext() in so many words.
    expected_hash  the model to ask for, and the only one accepted. Without it the server chooses,
                   and it must serve a single model.
    token          where the server asks for one besides the certificate.
    limits         largest message, default deadline.
    stock          inferences whose keys and encryptions of zero are made ahead in the background,
                   for the batch sizes used last; 0 for none.

    The server never sees inputs, activations or outputs. This client sees each linear layer's
    integers, from which the weights can be worked out with enough queries: a model that must stay
    hidden belongs into MpcClient's mode.
    Every method may raise ServiceError's leaves (PeerUnavailable, DeadlineExceeded, ...) and
    ProtocolError's; a failed inference is not repeated.
    """

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

    def close(self) -> None:
        """Give up the connection and every key made ahead."""
        super().close()
        if self._model is not None:
            self._model.stock.close()

    def prepare(self, batch: int = 1, *, timeout: float | None = None) -> None:
        """Connect, and make the stock for ``batch`` full now rather than in the background."""
        deadline = self._deadline(timeout)
        model = self._connect(deadline)
        model.check(batch, deadline)
        model.stock.fill(batch, deadline)

    def trace_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> Values:
        """As ``infer_int8``, with every node's integers by name: this client sees them all."""
        return self._trace(q, self._deadline(timeout))[0]

    def _infer(self, q: NDArray[Any], deadline: Deadline) -> Inference[np.int64]:
        values, stats = self._trace(q, deadline)
        return Inference(values[self._connect(deadline).graph.output.name], stats)

    def _trace(self, q: NDArray[Any], deadline: Deadline) -> tuple[Values, InferenceStats]:
        model = self._connect(deadline)
        meter = Meter(len(q))
        values = model.joined([self._walk(model, part, deadline, meter) for part in model.parts(q)])
        return values, meter.stats()

    def _walk(
        self, model: HeModel, q: NDArray[np.int64], deadline: Deadline, meter: Meter
    ) -> Values:
        model.check(len(q), deadline)
        with model.stock.session(len(q)) as session:
            walking = walk(model.graph, session, q)
            try:
                requests = next(walking)
                while True:
                    start = time.perf_counter()
                    answers = self._evaluate(model, requests, deadline)
                    meter.round(requests, answers, time.perf_counter() - start)
                    requests = walking.send(answers)
            except StopIteration as done:
                values: Values = done.value
                return values

    def _evaluate(self, model: HeModel, requests: list[Request], deadline: Deadline) -> list[bytes]:
        """All requests at once; the answers in their order."""
        calls = [(self._stub.EvaluateLinear, model.message(request)) for request in requests]
        return [answer.ciphertexts for answer in self._ask(calls, deadline)]

    def _receive(self, answers: Sequence[GetModelResponse]) -> HeModel:
        return HeModel.receive(
            answers[0].info,
            self._expected_hash,
            message_bytes=self._limits.message_bytes,
            stock=self._stock_size,
        )
