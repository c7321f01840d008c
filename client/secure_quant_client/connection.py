"""What every client is: channels to its servers, credentials, one deadline for a whole inference,
named errors, and the public model, fetched once.

Two faces of the same, for threads and for asyncio. A client adds its protocol: what it makes of the
servers' answers, and how it infers.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from secure_quant_client.forks import require_own
from secure_quant_client.stats import Inference

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


PROXIES = ("grpc_proxy", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")
CLOSED = "the client is closed"
OTHER_ROLE = (
    "the server there has another role: is the address right, and party 0's before party 1's?"
)
HINTS = {
    "Hostname Verification": OTHER_ROLE,
    "is not in peer certificate": OTHER_ROLE,  # gRPC 1.76 says it so
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not signed by the ca given here",
}
"""What gRPC says of a certificate -> what that means here."""


def _named(error: grpc.RpcError) -> SecureQuantError:
    found = raised(error)
    for said, hint in HINTS.items():
        if isinstance(found, PeerUnavailable) and said in found.what:
            return PeerUnavailable(found.what, hint=hint)
    proxy = next((name for name in PROXIES if os.environ.get(name)), None)
    if isinstance(found, PeerUnavailable) and found.hint is None and proxy is not None:
        return PeerUnavailable(found.what, hint=f"{proxy} is set, and is not used")
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
        self._closed = False
        self._process = os.getpid()

    def _deadline(self, timeout: float | None = None) -> Deadline:
        """Of a call that begins. Raises ConfigError, also in a forked process."""
        require_own("client", self._process)
        return Deadline(self._limits.deadline_s if timeout is None else timeout)

    def _fetching(self) -> list[Call] | None:
        """The calls that fetch the model; None if it is there. Raises ServiceError once closed."""
        if self._closed:
            raise ServiceError(CLOSED)
        if self._model is not None:
            return None
        request = self._request(model_hash=self._expected_hash or "")
        return [(stub.GetModel, request) for stub in self._stubs]

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Around the start of a call: gRPC has no name of its own for a channel that was closed."""
        try:
            yield
        except (ValueError, grpc.aio.UsageError) as error:
            if self._closed:
                raise ServiceError(CLOSED) from error
            raise

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
        if self._process != os.getpid():
            return  # what would close them runs in the parent
        for channel in self._channels:
            channel.close()

    def _connect(self, deadline: Deadline) -> Model:
        with deadline.holding(self._connecting):
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
            with self._open():
                return [method(request, timeout=deadline.remaining(), metadata=self._metadata)]
        except grpc.RpcError as error:
            raise _named(error) from error

    def _start(self, calls: Sequence[Call], deadline: Deadline) -> list[grpc.Future[Any]]:
        left = deadline.remaining()
        with self._open():
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

        timeout: seconds, finite, for everything: the model's fetch, waiting, every call. The
        default is the deadline in ``limits``.
        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity), DeadlineExceeded.
        """
        return self.infer_with_stats(x, timeout=timeout).y

    def infer_with_stats(
        self, x: ArrayLike, *, timeout: float | None = None
    ) -> Inference[np.float32]:
        """As ``infer``, with what it cost."""
        deadline = self._deadline(timeout)
        graph = self._connect(deadline).graph
        y, stats = self._infer(reference.quantize_input(graph, x), deadline)
        return Inference(reference.dequantize(graph, y), stats)

    def infer_int8(self, q: NDArray[Any], *, timeout: float | None = None) -> NDArray[np.int64]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]."""
        return self.infer_int8_with_stats(q, timeout=timeout).y

    def infer_int8_with_stats(
        self, q: NDArray[Any], *, timeout: float | None = None
    ) -> Inference[np.int64]:
        """As ``infer_int8``, with what it cost."""
        return self._infer(q, self._deadline(timeout))

    @abstractmethod
    def _infer(self, q: NDArray[Any], deadline: Deadline) -> Inference[np.int64]:
        """int8[batch, *input shape] -> int64[batch, *output shape]."""


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
        if self._process != os.getpid():
            return  # what would close them runs in the parent
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
        with self._open():
            under_way = [
                method(request, timeout=left, metadata=self._metadata) for method, request in calls
            ]
        try:
            return list(await asyncio.gather(*under_way))
        except grpc.RpcError as error:
            raise _named(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ServiceError(CLOSED) from None  # its channels ended the calls
        finally:
            _cancel(under_way)


class AsyncIntegerClient(AsyncClient[IntegerModel]):
    """Of an exact engine, for asyncio."""

    async def graph(self) -> Graph:
        """The public graph, fetched at first use. Raises HashMismatch and the like."""
        deadline = self._deadline()
        async with deadline.bounding():
            return (await self._connect(deadline)).graph

    async def infer(self, x: ArrayLike, *, timeout: float | None = None) -> NDArray[np.float32]:
        """float[batch, *input shape] -> float32[batch, *output shape].

        timeout: seconds, finite, for everything: the model's fetch, waiting, every call. The
        default is the deadline in ``limits``.
        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity), DeadlineExceeded.
        """
        return (await self.infer_with_stats(x, timeout=timeout)).y

    async def infer_with_stats(
        self, x: ArrayLike, *, timeout: float | None = None
    ) -> Inference[np.float32]:
        """As ``infer``, with what it cost."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            graph = (await self._connect(deadline)).graph
            y, stats = await self._infer(reference.quantize_input(graph, x), deadline)
            return Inference(reference.dequantize(graph, y), stats)

    async def infer_int8(
        self, q: NDArray[Any], *, timeout: float | None = None
    ) -> NDArray[np.int64]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]."""
        return (await self.infer_int8_with_stats(q, timeout=timeout)).y

    async def infer_int8_with_stats(
        self, q: NDArray[Any], *, timeout: float | None = None
    ) -> Inference[np.int64]:
        """As ``infer_int8``, with what it cost."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            return await self._infer(q, deadline)

    @abstractmethod
    async def _infer(self, q: NDArray[Any], deadline: Deadline) -> Inference[np.int64]:
        """int8[batch, *input shape] -> int64[batch, *output shape]."""


def _cancel(under_way: Sequence[Any]) -> None:
    """Those calls that are not done."""
    for call in under_way:
        call.cancel()
