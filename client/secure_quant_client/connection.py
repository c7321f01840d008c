"""What every client is: channels to its servers, credentials, one deadline for a whole inference,
named errors, and the public model, fetched once.

Two faces of the same, for threads and for asyncio. A client adds its protocol: what it makes of the
servers' answers, and how it infers.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc
import grpc.aio
import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant import reference
from secure_quant.errors import PeerUnavailable, SecureQuantError, ServiceError
from secure_quant.ir import Graph
from secure_quant.transport import Limits, Security, aio_channel, sync_channel
from secure_quant.wire import raised
from secure_quant_client.base import Deadline, call_metadata
from secure_quant_client.stats import InferenceStats

__all__ = [
    "AsyncClient",
    "AsyncIntegerClient",
    "Call",
    "IntegerClient",
    "Service",
    "SyncClient",
]

Call = tuple[Any, Any]
"""A method of a stub and its request."""


@dataclass(frozen=True)
class Service:
    """roles: of the servers, in the order of their addresses. stub: makes a stub on a channel; it
    has GetModel. request: GetModel's."""

    roles: tuple[str, ...]
    stub: Callable[[Any], Any]
    request: Callable[..., Any]


HINTS = {
    "Hostname Verification": "the server there has another role: is the address right, and party "
    "0's before party 1's?",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not signed by the ca given here",
}
"""What gRPC says of a certificate -> what that means here."""


def _named(error: grpc.RpcError) -> SecureQuantError:
    found = raised(error)
    for said, hint in HINTS.items():
        if isinstance(found, PeerUnavailable) and said in found.what:
            return PeerUnavailable(found.what, hint=hint)
    return found


class _HasGraph(Protocol):
    @property
    def graph(self) -> Graph: ...


Model = TypeVar("Model")
IntegerModel = TypeVar("IntegerModel", bound=_HasGraph)


class _Client(ABC, Generic[Model]):
    """What both faces share."""

    def __init__(
        self,
        targets: Sequence[str],
        service: Service,
        channel: Callable[..., Any],
        *,
        tls: Security,
        expected_hash: str | None,
        token: str | None,
        limits: Limits | None,
    ) -> None:
        self._limits, self._expected_hash = limits or Limits(), expected_hash
        self._metadata = call_metadata(tls, token)
        self._channels = [
            channel(target, tls, server_role=role, limits=self._limits)
            for role, target in zip(service.roles, targets, strict=True)
        ]
        self._stubs = [service.stub(channel) for channel in self._channels]
        self._request = service.request
        self._model: Model | None = None
        self._stats: InferenceStats | None = None
        self._closed = False

    @property
    def stats(self) -> InferenceStats:
        """Of the inference that ended last. Raises ServiceError before the first."""
        if self._stats is None:
            raise ServiceError("no inference yet")
        return self._stats

    def _deadline(self, timeout: float | None = None) -> Deadline:
        return Deadline(self._limits.deadline_s if timeout is None else timeout)

    def _fetching(self) -> list[Call] | None:
        """The calls that fetch the model; None if it is there. Raises ServiceError once closed."""
        if self._closed:
            raise ServiceError("the client is closed")
        if self._model is not None:
            return None
        request = self._request(model_hash=self._expected_hash or "")
        return [(stub.GetModel, request) for stub in self._stubs]

    @abstractmethod
    def _receive(self, answers: Sequence[Any]) -> Model:
        """What the client keeps of the servers' answers to GetModel, checked."""


class SyncClient(_Client[Model]):
    """For threads."""

    def __init__(self, targets: Sequence[str], service: Service, **options: Any) -> None:
        super().__init__(targets, service, sync_channel, **options)
        self._connecting = threading.Lock()

    def __enter__(self) -> Self:
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
        self._closed = True
        for channel in self._channels:
            channel.close()

    def _connect(self, deadline: Deadline) -> Model:
        with self._connecting:
            calls = self._fetching()
            if calls is not None:
                self._model = self._receive(self._ask(calls, deadline))
            model: Model = self._model  # type: ignore[assignment]  # fetched by now
            return model

    def _ask(self, calls: Sequence[Call], deadline: Deadline) -> list[Any]:
        """All calls at once; their answers in the same order. The first that fails ends all."""
        if len(calls) > 1:
            return self._finish(self._start(calls, deadline))
        ((method, request),) = calls  # the usual case: no second thread
        try:
            return [method(request, timeout=deadline.remaining(), metadata=self._metadata)]
        except grpc.RpcError as error:
            raise _named(error) from error

    def _start(self, calls: Sequence[Call], deadline: Deadline) -> list[grpc.Future[Any]]:
        left = deadline.remaining()
        return [
            method.future(request, timeout=left, metadata=self._metadata)
            for method, request in calls
        ]

    @staticmethod
    def _finish(under_way: Sequence[grpc.Future[Any]]) -> list[Any]:
        def stop(ended: Any) -> None:
            if ended.code() is not grpc.StatusCode.OK:
                _cancel(under_way)

        for call in under_way:
            call.add_done_callback(stop)
        try:
            return [call.result() for call in under_way]
        except (grpc.RpcError, grpc.FutureCancelledError) as ended:
            _cancel(under_way)
            for call in under_way:  # those that were cancelled say nothing; one that failed does
                error = None if call.cancelled() else call.exception()
                if isinstance(error, grpc.RpcError):
                    raise _named(error) from error
            raise ServiceError("the call was cancelled") from ended
        finally:
            _cancel(under_way)


class IntegerClient(SyncClient[IntegerModel]):
    """Of an exact engine, for threads."""

    @property
    def graph(self) -> Graph:
        """The public graph, fetched at first use. Raises HashMismatch and the like."""
        return self._connect(self._deadline()).graph

    def infer(self, x: ArrayLike, *, timeout: float | None = None) -> NDArray[np.float32]:
        """float[batch, *input shape] -> float32[batch, *output shape].

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity).
        """
        q = reference.quantize_input(self.graph, x)
        return reference.dequantize(self.graph, self.infer_int8(q, timeout=timeout))

    @abstractmethod
    def infer_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> NDArray[np.int64]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]."""


class AsyncClient(_Client[Model]):
    """For asyncio. To be made inside the event loop that uses it."""

    def __init__(self, targets: Sequence[str], service: Service, **options: Any) -> None:
        super().__init__(targets, service, aio_channel, **options)
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Self:
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
        self._closed = True
        for channel in self._channels:
            await channel.close()

    async def _connect(self, deadline: Deadline) -> Model:
        async with self._connecting:
            calls = self._fetching()
            if calls is not None:
                self._model = self._receive(await self._ask(calls, deadline))
            model: Model = self._model  # type: ignore[assignment]  # fetched by now
            return model

    async def _ask(self, calls: Sequence[Call], deadline: Deadline) -> list[Any]:
        """All calls at once; their answers in the same order. The first that fails ends all."""
        left = deadline.remaining()
        under_way = [
            method(request, timeout=left, metadata=self._metadata) for method, request in calls
        ]
        try:
            return list(await asyncio.gather(*under_way))
        except grpc.RpcError as error:
            raise _named(error) from error
        finally:
            _cancel(under_way)


class AsyncIntegerClient(AsyncClient[IntegerModel]):
    """Of an exact engine, for asyncio."""

    async def graph(self) -> Graph:
        """The public graph, fetched at first use. Raises HashMismatch and the like."""
        return (await self._connect(self._deadline())).graph

    async def infer(self, x: ArrayLike, *, timeout: float | None = None) -> NDArray[np.float32]:
        """float[batch, *input shape] -> float32[batch, *output shape].

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity).
        """
        graph = await self.graph()
        q = reference.quantize_input(graph, x)
        return reference.dequantize(graph, await self.infer_int8(q, timeout=timeout))

    @abstractmethod
    async def infer_int8(
        self, q: NDArray[Any], *, timeout: float | None = None
    ) -> NDArray[np.int64]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]."""


def _cancel(under_way: Sequence[Any]) -> None:
    """Those calls that are not done."""
    for call in under_way:
        call.cancel()
