"""Approximate inference in one round trip: shallow models under leveled CKKS."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.errors import ConfigError, ImplausibleAnswer, SessionNotFound
from secure_quant.he.leveled.plan import TOLERANCE, LeveledPlan
from secure_quant.transport import Limits, Security
from secure_quant.wire.gen.secure_inference_pb2 import GetModelResponse
from secure_quant_client.base import Deadline
from secure_quant_client.connection import AsyncClient, SyncClient
from secure_quant_client.forks import forgotten_by_children
from secure_quant_client.he.client import HE
from secure_quant_client.leveled.model import LeveledSession, RemoteLeveled
from secure_quant_client.stats import Inference

__all__ = ["AsyncLeveledClient", "LeveledClient"]

ANSWERS_PER_KEY = 64
ATTEMPTS = 2
"""A session that the server no longer knows is opened again, once."""


class LeveledClient(SyncClient[RemoteLeveled]):
    """A connection to a homomorphic-encryption server that serves a leveled model.

    target, tls, expected_hash, token, limits: as HeClient. Threads take turns.

    The first inference makes a secret key and uploads its evaluation keys, megabytes; later ones
    are one round trip each. Unlike HeClient, this client sees outputs only, and they are
    **approximate**: off by at most ``error_bound`` unless with probability below 2^-40. Their last
    digits depend on the secret key: do not hand them back to the server in full precision; round
    them to what the bound allows, or call ``renew`` first. To a server that deviates even the
    class of an answer tells something of the key, so a key serves few answers and is given up when
    an answer is not what it can be.

    answers_per_key  samples under one secret key, which is then made anew and uploaded.
    tolerance        largest error bound of a plan that is accepted.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Security,
        expected_hash: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
        answers_per_key: int = ANSWERS_PER_KEY,
        tolerance: float = TOLERANCE,
    ) -> None:
        super().__init__(
            [target], HE, tls=tls, expected_hash=expected_hash, token=token, limits=limits
        )
        self._bounds = _bounds(answers_per_key, tolerance)
        self._session: LeveledSession | None = None
        self._key_bytes_up = 0
        self._turn = threading.RLock()
        forgotten_by_children(self)

    def forget(self) -> None:
        """In a forked process: the key is the parent's."""
        self._session, self._turn = None, threading.RLock()

    def close(self) -> None:
        """Give up the connection and the keys."""
        super().close()  # first, so that calls under way end
        self.renew()

    def renew(self) -> None:
        """Forget the secret key; the next inference makes another and uploads again."""
        with self._turn:
            self._session = None

    @property
    def plan(self) -> LeveledPlan:
        """Public: parameters, the model's widths and hash. Raises HashMismatch and the like."""
        return self._connect(self._deadline()).plan

    @property
    def error_bound(self) -> float:
        """Largest error of any output, in units of the output."""
        return self.plan.error_bound

    @property
    def key_bytes_up(self) -> int:
        """Evaluation keys uploaded so far, by all sessions."""
        return self._key_bytes_up

    def prepare(self, *, timeout: float | None = None) -> None:
        """Connect, make keys and upload them now rather than at the first inference."""
        deadline = self._deadline(timeout)
        with deadline.holding(self._turn):
            self._opened(self._connect(deadline), deadline)

    def infer(self, x: ArrayLike, *, timeout: float | None = None) -> NDArray[np.float64]:
        """float[batch, ...] -> float64[batch, out]; values beyond the input bound are clipped.

        timeout: seconds, finite, for everything: the model's fetch, waiting for another thread,
        keys, every call. The default is the deadline in ``limits``.
        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity), DeadlineExceeded.
        """
        return self.infer_with_stats(x, timeout=timeout).y

    def infer_with_stats(
        self, x: ArrayLike, *, timeout: float | None = None
    ) -> Inference[np.float64]:
        """As ``infer``, with what it cost."""
        start, deadline = time.perf_counter(), self._deadline(timeout)
        with deadline.holding(self._turn):
            model = self._connect(deadline)
            parts = model.parts(x)
            made = np.concatenate([self._infer(model, part, deadline) for part in parts])
        return Inference(made, model.stats(start, len(made), len(parts)))

    def _infer(
        self, model: RemoteLeveled, x: NDArray[np.float64], deadline: Deadline
    ) -> NDArray[np.float64]:
        for attempt in range(1, ATTEMPTS + 1):
            session = self._opened(model, deadline, len(x))
            try:
                (answer,) = self._ask(
                    [(self._stubs[0].EvaluateModel, session.request(x))], deadline
                )
                break
            except SessionNotFound:
                self.renew()  # the server restarted or needed the room
                if attempt == ATTEMPTS:
                    raise
        try:
            return session.open(answer.ciphertexts, len(x))
        except ImplausibleAnswer:
            self.renew()  # whatever it tells of this key is of no use
            raise

    def _opened(self, model: RemoteLeveled, deadline: Deadline, samples: int = 1) -> LeveledSession:
        if self._session is None or self._session.left < samples:
            self._session = None
            session = model.new_session()
            (answer,) = self._ask([(self._stubs[0].OpenSession, session.upload())], deadline)
            self._key_bytes_up += session.opened(answer.session_id)
            self._session = session
        return self._session

    def _receive(self, answers: Sequence[GetModelResponse]) -> RemoteLeveled:
        limit = self._limits.message_bytes
        return RemoteLeveled.receive(
            answers[0], self._expected_hash, message_bytes=limit, **self._bounds
        )


class AsyncLeveledClient(AsyncClient[RemoteLeveled]):
    """See LeveledClient. Make it inside the event loop that uses it; tasks take turns, and
    cryptography runs in a thread, so that the loop stays free."""

    def __init__(
        self,
        target: str,
        *,
        tls: Security,
        expected_hash: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
        answers_per_key: int = ANSWERS_PER_KEY,
        tolerance: float = TOLERANCE,
    ) -> None:
        super().__init__(
            [target], HE, tls=tls, expected_hash=expected_hash, token=token, limits=limits
        )
        self._bounds = _bounds(answers_per_key, tolerance)
        self._session: LeveledSession | None = None
        self._key_bytes_up = 0
        self._turn = asyncio.Lock()
        forgotten_by_children(self)

    def forget(self) -> None:
        """In a forked process: the key is the parent's."""
        self._session, self._turn = None, asyncio.Lock()

    async def close(self) -> None:
        """Give up the connection and the keys."""
        await super().close()  # first, so that calls under way end
        await self.renew()

    async def renew(self) -> None:
        """Forget the secret key; the next inference makes another and uploads again."""
        async with self._turn:
            self._session = None

    async def plan(self) -> LeveledPlan:
        """Public: parameters, the model's widths and hash. Raises HashMismatch and the like."""
        deadline = self._deadline()
        async with deadline.bounding():
            return (await self._connect(deadline)).plan

    async def error_bound(self) -> float:
        """Largest error of any output, in units of the output."""
        return (await self.plan()).error_bound

    @property
    def key_bytes_up(self) -> int:
        """Evaluation keys uploaded so far, by all sessions."""
        return self._key_bytes_up

    async def prepare(self, *, timeout: float | None = None) -> None:
        """Connect, make keys and upload them now rather than at the first inference."""
        deadline = self._deadline(timeout)
        async with deadline.bounding(), self._turn:
            await self._opened(await self._connect(deadline), deadline)

    async def infer(self, x: ArrayLike, *, timeout: float | None = None) -> NDArray[np.float64]:
        """float[batch, ...] -> float64[batch, out]; values beyond the input bound are clipped.

        timeout: seconds, finite, for everything: the model's fetch, waiting for another task,
        keys, every call. The default is the deadline in ``limits``.
        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity), DeadlineExceeded.
        """
        return (await self.infer_with_stats(x, timeout=timeout)).y

    async def infer_with_stats(
        self, x: ArrayLike, *, timeout: float | None = None
    ) -> Inference[np.float64]:
        """As ``infer``, with what it cost."""
        start, deadline = time.perf_counter(), self._deadline(timeout)
        async with deadline.bounding(), self._turn:
            model = await self._connect(deadline)
            parts = model.parts(x)
            made = np.concatenate([await self._infer(model, part, deadline) for part in parts])
            return Inference(made, model.stats(start, len(made), len(parts)))

    async def _infer(
        self, model: RemoteLeveled, x: NDArray[np.float64], deadline: Deadline
    ) -> NDArray[np.float64]:
        for attempt in range(1, ATTEMPTS + 1):
            session = await self._opened(model, deadline, len(x))
            request = await asyncio.to_thread(session.request, x)
            try:
                (answer,) = await self._ask([(self._stubs[0].EvaluateModel, request)], deadline)
                break
            except SessionNotFound:
                self._session = None  # the server restarted or needed the room
                if attempt == ATTEMPTS:
                    raise
        try:
            return await asyncio.to_thread(session.open, answer.ciphertexts, len(x))
        except ImplausibleAnswer:
            self._session = None  # whatever it tells of this key is of no use
            raise

    async def _opened(
        self, model: RemoteLeveled, deadline: Deadline, samples: int = 1
    ) -> LeveledSession:
        if self._session is None or self._session.left < samples:
            self._session = None
            session = await asyncio.to_thread(model.new_session)
            (answer,) = await self._ask([(self._stubs[0].OpenSession, session.upload())], deadline)
            self._key_bytes_up += session.opened(answer.session_id)
            self._session = session
        return self._session

    def _receive(self, answers: Sequence[GetModelResponse]) -> RemoteLeveled:
        limit = self._limits.message_bytes
        return RemoteLeveled.receive(
            answers[0], self._expected_hash, message_bytes=limit, **self._bounds
        )


def _bounds(answers_per_key: int, tolerance: float) -> dict[str, Any]:
    if type(answers_per_key) is not int or answers_per_key < 1:
        raise ConfigError("answers per key", got=answers_per_key, expected="an integer >= 1")
    if not 0 < tolerance < float("inf"):
        raise ConfigError("tolerance", got=tolerance, expected="> 0, in units of the output")
    return {"answers_per_key": answers_per_key, "tolerance": tolerance}
