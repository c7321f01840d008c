"""Inference on secret-shared inputs at two parties that do not collude."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import ConfigError
from secure_quant.transport import Limits, Security
from secure_quant.wire.gen.share_inference_pb2 import (
    InferResponse,
    ShareInferenceServiceGetModelRequest,
    ShareInferenceServiceGetModelResponse,
)
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceStub
from secure_quant_client.base import Deadline
from secure_quant_client.connection import AsyncIntegerClient, Call, IntegerClient, Service
from secure_quant_client.mpc.model import Meter, MpcModel, Part
from secure_quant_client.stats import Inference

__all__ = ["AsyncMpcClient", "MpcClient"]

IN_FLIGHT = 4
"""Parts of one large input that are under way at once."""

MPC = Service(("party0", "party1"), ShareInferenceServiceStub, ShareInferenceServiceGetModelRequest)


class MpcClient(IntegerClient[MpcModel]):
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
        super().__init__(
            _two(targets), MPC, tls=tls, expected_hash=expected_hash, token=token, limits=limits
        )

    def _infer(self, q: NDArray[Any], deadline: Deadline) -> Inference[np.int64]:
        model, meter = self._connect(deadline), Meter(len(q))
        if len(q) <= model.batch:
            (part,) = model.parts(q)
            answers = self._ask(_calls(self._stubs, part), deadline)
            found = [_opened(model, meter, part, answers)]
        else:
            found = self._parts(model, meter, model.parts(q), deadline)
        return Inference(model.joined(found), meter.stats())

    def _parts(
        self, model: MpcModel, meter: Meter, parts: Iterator[Part], deadline: Deadline
    ) -> list[NDArray[np.int64]]:
        """Several calls, a few at a time."""
        found: list[NDArray[np.int64]] = []
        under_way: deque[tuple[Part, list[grpc.Future[Any]]]] = deque()
        try:
            for part in parts:
                if len(under_way) == IN_FLIGHT:
                    sent, calls = under_way.popleft()
                    found.append(_opened(model, meter, sent, self._finish(calls)))
                under_way.append((part, self._start(_calls(self._stubs, part), deadline)))
            while under_way:
                sent, calls = under_way.popleft()
                found.append(_opened(model, meter, sent, self._finish(calls)))
        finally:
            for call in (call for _, calls in under_way for call in calls):
                call.cancel()
        return found

    def _receive(self, answers: Sequence[ShareInferenceServiceGetModelResponse]) -> MpcModel:
        return _model(answers, self._expected_hash, self._limits)


class AsyncMpcClient(AsyncIntegerClient[MpcModel]):
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
        super().__init__(
            _two(targets), MPC, tls=tls, expected_hash=expected_hash, token=token, limits=limits
        )

    async def _infer(self, q: NDArray[Any], deadline: Deadline) -> Inference[np.int64]:
        model, meter = await self._connect(deadline), Meter(len(q))
        found: dict[int, NDArray[np.int64]] = {}
        parts = enumerate(model.parts(q))

        async def take() -> None:
            for place, part in parts:  # made one by one, when there is somebody to send it
                found[place] = await self._infer_part(model, meter, part, deadline)

        tasks = [asyncio.ensure_future(take()) for _ in range(IN_FLIGHT)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        y = model.joined([found[place] for place in sorted(found)])
        return Inference(y, meter.stats())

    async def _infer_part(
        self, model: MpcModel, meter: Meter, part: Part, deadline: Deadline
    ) -> NDArray[np.int64]:
        answers = await self._ask(_calls(self._stubs, part), deadline)
        return _opened(model, meter, part, answers)

    def _receive(self, answers: Sequence[ShareInferenceServiceGetModelResponse]) -> MpcModel:
        return _model(answers, self._expected_hash, self._limits)


def _two(targets: Sequence[str]) -> Sequence[str]:
    if isinstance(targets, str) or len(targets) != 2:
        raise ConfigError("targets", got=targets, expected="[party 0's host:port, party 1's]")
    return targets


def _model(
    answers: Sequence[ShareInferenceServiceGetModelResponse],
    expected_hash: str | None,
    limits: Limits,
) -> MpcModel:
    return MpcModel.receive(answers, expected_hash, message_bytes=limits.message_bytes)


def _opened(
    model: MpcModel, meter: Meter, part: Part, answers: Sequence[InferResponse]
) -> NDArray[np.int64]:
    in_order = answers[::-1]
    meter.part(part, in_order)
    return model.open(part, in_order)


def _calls(stubs: Sequence[ShareInferenceServiceStub], part: Part) -> list[Call]:
    """Party 1's first: it is small, and by the time party 0 offers the inference it is there."""
    calls = [(stub.Infer, request) for stub, request in zip(stubs, part.requests, strict=True)]
    return calls[::-1]
