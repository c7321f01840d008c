"""What every client is: channels to its servers, credentials, and the public model, fetched once.

Two faces of the same, for threads and for asyncio, each on its driver. A client adds what it makes
of the servers' answers to GetModel, and the programs of its engine.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Required, Self, TypedDict, TypeVar, Unpack

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from secure_quant.errors import ConfigError, InsecureRefused, PeerUnavailable, ServiceError
from secure_quant.transport import (
    DEADLINE_S,
    InsecurePlaintext,
    Limits,
    Security,
    aio_channel,
    check_security,
)
from secure_quant_client.driver import CLOSED, AsyncDriver, Deadline, Driver, Metadata, SyncDriver
from secure_quant_client.forks import require_own
from secure_quant_client.program import Call
from secure_quant_client.threadless import threadless_channel

__all__ = [
    "AsyncClient",
    "Client",
    "Connection",
    "OneServer",
    "Service",
    "SyncClient",
    "call_metadata",
]


_HEALTH = HealthCheckRequest()


@dataclass(frozen=True)
class Service:
    """roles: of the servers, in the order of their addresses. stub: makes a stub on a channel; it
    has GetModel. request: GetModel's. replicas: full name of the service, if any of several servers
    behind one address may answer any call of it."""

    roles: tuple[str, ...]
    stub: Callable[[Any], Any]
    request: Callable[..., Any]
    replicas: str | None = None


def call_metadata(security: Security, token: str | None) -> Metadata:
    """The metadata of every call: the client's token, if it has one.

    Raises InsecureRefused for a token on a plaintext connection.
    """
    if token is None:
        return ()
    if isinstance(check_security(security), InsecurePlaintext):
        raise InsecureRefused("token", got="a plaintext connection", expected="Tls(...)")
    if not token.isascii() or not token.isprintable():
        raise ConfigError("token", expected="printable ASCII")
    return (("authorization", f"Bearer {token}"),)


class Connection(TypedDict, total=False):
    """What every client is told besides where its servers are: see HeClient."""

    tls: Required[Security]
    expected_hash: str | None
    token: str | None
    limits: Limits | None


Model = TypeVar("Model")


class Client(Driver, ABC, Generic[Model]):
    """What both faces share. The arguments are those of MpcClient."""

    _service: Service
    _channel: Callable[..., Any]
    _lock: Callable[[], Any]

    def __init__(
        self,
        targets: Sequence[str],
        *,
        tls: Security,
        expected_hash: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        service = self._service
        listed = not isinstance(targets, str) and all(isinstance(each, str) for each in targets)
        if not listed or len(targets) != len(service.roles):
            expected = f"host:port of {', of '.join(service.roles)}"
            raise ConfigError("targets", got=targets, expected=expected)
        self._limits, self._expected_hash = limits or Limits(), expected_hash
        self._metadata = call_metadata(tls, token)
        self._channels = [
            self._channel(
                target, tls, server_role=role, limits=self._limits, service=service.replicas
            )
            for role, target in zip(service.roles, targets, strict=True)
        ]
        self._targets = tuple(targets)
        self._stubs = [service.stub(channel) for channel in self._channels]
        self._request = service.request
        self._model: Model | None = None
        self._connecting = self._lock()
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<{type(self).__name__} of {', '.join(self._targets)}{state}>"

    def _deadline(self, timeout: float | None = None) -> Deadline:
        """Of a call that begins. Raises ConfigError, also in a forked process."""
        require_own("client", self._process)
        own = self._limits.deadline_s if timeout is None else timeout
        return Deadline(DEADLINE_S, fixed=False) if own is None else Deadline(own)

    def _known(self) -> Model | None:
        """The model, if it is there. Raises ServiceError once closed."""
        if self._closed:
            raise ServiceError(CLOSED)
        return self._model

    def _asking_health(self) -> list[Call]:
        for stub, channel in zip(self._stubs, self._channels, strict=True):
            if not hasattr(stub, "Check"):  # a method more, of grpc.health.v1
                stub.Check = HealthStub(channel).Check
        return [Call("Check", _HEALTH, server) for server in range(len(self._stubs))]

    def _require_serving(self, answers: Sequence[HealthCheckResponse]) -> None:
        for role, target, answer in zip(self._service.roles, self._targets, answers, strict=True):
            if answer.status != HealthCheckResponse.SERVING:
                hint = "its log says what it waits for"
                raise PeerUnavailable(f"{role} at {target}", got="not serving", hint=hint)

    def _fetching(self) -> list[Call]:
        request = self._request(model_hash=self._expected_hash or "")
        return [Call("GetModel", request, server) for server in range(len(self._stubs))]

    @abstractmethod
    def _receive(self, answers: Sequence[Any]) -> Model:
        """What the client keeps of the servers' answers to GetModel, checked."""


class OneServer(Client[Model]):
    """Of an engine with a single server."""

    def __init__(self, target: str, **connection: Unpack[Connection]) -> None:
        if not isinstance(target, str):
            raise ConfigError("target", got=type(target).__name__, expected="one host:port")
        super().__init__([target], **connection)


class SyncClient(Client[Model], SyncDriver):
    """For threads."""

    _channel = staticmethod(threadless_channel)
    _lock = staticmethod(threading.Lock)

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

    def check_ready(self, *, timeout: float | None = None) -> None:
        """Ask all servers whether they serve (grpc.health.v1). Raises PeerUnavailable, which names
        the one that does not, DeadlineExceeded."""
        self._check_here(self._deadline(timeout))

    def _check_here(self, deadline: Deadline) -> None:
        self._require_serving(self._ask(self._asking_health(), deadline))

    def _connect(self, deadline: Deadline) -> Model:
        if (model := self._known()) is not None:
            return model
        with deadline.holding(self._connecting):
            if (model := self._known()) is None:
                model = self._model = self._receive(self._ask(self._fetching(), deadline))
            return model


class AsyncClient(Client[Model], AsyncDriver):
    """For asyncio. To be made inside the event loop that uses it."""

    _channel = staticmethod(aio_channel)
    _lock = staticmethod(asyncio.Lock)

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

    async def check_ready(self, *, timeout: float | None = None) -> None:
        """As SyncClient.check_ready."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            await self._check_here(deadline)

    async def _check_here(self, deadline: Deadline) -> None:
        self._require_serving(await self._ask(self._asking_health(), deadline))

    async def _connect(self, deadline: Deadline) -> Model:
        if (model := self._known()) is not None:
            return model
        async with self._connecting:
            if (model := self._known()) is None:
                model = self._model = self._receive(await self._ask(self._fetching(), deadline))
            return model
