"""Inference on encrypted inputs at one server (homomorphic encryption)."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant import reference
from secure_quant.errors import ServiceError
from secure_quant.ir import Graph
from secure_quant.transport import Limits, Security, sync_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client.base import Deadline, call_metadata
from secure_quant_client.he_model import HeModel, Meter, joined
from secure_quant_client.stats import InferenceStats
from secure_quant_client.walk import Request, Values, walk

__all__ = ["HeClient"]


class HeClient:
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
        self._limits, self._stock_size = limits or Limits(), stock
        self._metadata = call_metadata(tls, token)
        self._channel = sync_channel(target, tls, server_role="he", limits=self._limits)
        self._stub = SecureInferenceServiceStub(self._channel)
        self._expected_hash = expected_hash
        self._model: HeModel | None = None
        self._lock = threading.Lock()
        self._stats: InferenceStats | None = None
        self._closed = False

    def __enter__(self) -> HeClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connection and every key made ahead."""
        self._closed = True
        self._channel.close()
        if self._model is not None:
            self._model.stock.close()

    def prepare(self, batch: int = 1) -> None:
        """Connect, and make the stock for ``batch`` full now rather than in the background."""
        self._connect(Deadline(self._limits.deadline_s)).stock.fill(batch)

    @property
    def graph(self) -> Graph:
        """The public graph, fetched at first use. Raises HashMismatch and the like."""
        return self._connect(Deadline(self._limits.deadline_s)).graph

    @property
    def stats(self) -> InferenceStats:
        """Of the last inference. Raises ServiceError before the first."""
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
        return self.trace_int8(q, timeout=timeout)[self.graph.output.name]

    def trace_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> Values:
        """As ``infer_int8``, with every node's integers by name: this client sees them all."""
        deadline = Deadline(self._limits.deadline_s if timeout is None else timeout)
        model = self._connect(deadline)
        meter = Meter(len(q))
        values = joined([self._walk(model, part, deadline, meter) for part in model.parts(q)])
        self._stats = meter.stats()
        return values

    def _walk(
        self, model: HeModel, q: NDArray[np.int64], deadline: Deadline, meter: Meter
    ) -> Values:
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
        messages = [model.message(request) for request in requests]
        evaluate, metadata, left = self._stub.EvaluateLinear, self._metadata, deadline.remaining()
        try:
            if len(messages) == 1:  # the usual case: no second thread
                return [evaluate(messages[0], timeout=left, metadata=metadata).ciphertexts]
            calls = [evaluate.future(m, timeout=left, metadata=metadata) for m in messages]
            try:
                return [call.result().ciphertexts for call in calls]
            finally:
                for call in calls:
                    call.cancel()  # those that are not done
        except grpc.RpcError as error:
            raise raised(error) from error

    def _connect(self, deadline: Deadline) -> HeModel:
        with self._lock:
            if self._closed:
                raise ServiceError("the client is closed")
            if self._model is None:
                request = GetModelRequest(model_hash=self._expected_hash or "")
                try:
                    answer = self._stub.GetModel(
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
