"""Approximate inference in one round trip: shallow models under leveled CKKS."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.he.leveled.plan import TOLERANCE, LeveledPlan
from secure_quant.wire.gen.secure_inference_pb2 import GetModelResponse
from secure_quant_client.connection import AsyncClient, Connection, OneServer, SyncClient
from secure_quant_client.forks import forgotten_by_children
from secure_quant_client.he.client import HE
from secure_quant_client.leveled.model import RemoteLeveled, check_bounds
from secure_quant_client.leveled.sessions import Sessions
from secure_quant_client.stats import Inference

__all__ = ["AsyncLeveledClient", "LeveledClient"]

ANSWERS_PER_KEY = 64


class _Leveled(OneServer[RemoteLeveled]):
    """What both faces share."""

    _service = replace(HE, replicas=None)  # a session lives at one server

    def __init__(
        self,
        target: str,
        *,
        answers_per_key: int = ANSWERS_PER_KEY,
        tolerance: float = TOLERANCE,
        **connection: Unpack[Connection],
    ) -> None:
        check_bounds(answers_per_key, tolerance)
        super().__init__(target, **connection)
        self._answers_per_key, self._tolerance = answers_per_key, tolerance
        self._sessions, self._turn = Sessions(), self._lock()
        forgotten_by_children(self)

    def forget(self) -> None:
        """In a forked process: the key is the parent's."""
        self._sessions.renew()
        self._turn = self._lock()

    @property
    def key_bytes_up(self) -> int:
        """Evaluation keys uploaded so far, by all sessions."""
        return self._sessions.key_bytes_up

    def _receive(self, answers: Sequence[GetModelResponse]) -> RemoteLeveled:
        return RemoteLeveled.receive(
            answers[0],
            self._expected_hash,
            message_bytes=self._limits.message_bytes,
            answers_per_key=self._answers_per_key,
            tolerance=self._tolerance,
        )


class LeveledClient(_Leveled, SyncClient[RemoteLeveled]):
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

    def close(self) -> None:
        """Give up the connection and the keys."""
        super().close()  # first, so that calls under way end
        self.renew()

    def renew(self) -> None:
        """Forget the secret key; the next inference makes another and uploads again."""
        with self._turn:
            self._sessions.renew()

    @property
    def plan(self) -> LeveledPlan:
        """Public: parameters, the model's widths and hash. Raises HashMismatch and the like."""
        return self._connect(self._deadline()).plan

    @property
    def error_bound(self) -> float:
        """Largest error of any output, in units of the output."""
        return self.plan.error_bound

    def prepare(self, *, timeout: float | None = None) -> None:
        """Connect, make keys and upload them now rather than at the first inference."""
        deadline = self._deadline(timeout)
        with deadline.holding(self._turn):
            self._run(self._sessions.opened(self._connect(deadline)), deadline)

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
            return self._run(self._sessions.infer(model, x, start), deadline)


class AsyncLeveledClient(_Leveled, AsyncClient[RemoteLeveled]):
    """See LeveledClient. Make it inside the event loop that uses it; tasks take turns, and
    cryptography runs in a thread, so that the loop stays free."""

    _heavy = True

    async def close(self) -> None:
        """Give up the connection and the keys."""
        await super().close()  # first, so that calls under way end
        await self.renew()

    async def renew(self) -> None:
        """Forget the secret key; the next inference makes another and uploads again."""
        async with self._turn:
            self._sessions.renew()

    async def plan(self) -> LeveledPlan:
        """Public: parameters, the model's widths and hash. Raises HashMismatch and the like."""
        deadline = self._deadline()
        async with deadline.bounding():
            return (await self._connect(deadline)).plan

    async def error_bound(self) -> float:
        """Largest error of any output, in units of the output."""
        return (await self.plan()).error_bound

    async def prepare(self, *, timeout: float | None = None) -> None:
        """Connect, make keys and upload them now rather than at the first inference."""
        deadline = self._deadline(timeout)
        async with deadline.bounding(), self._turn:
            model = await self._connect(deadline)
            await self._run(self._sessions.opened(model), deadline)

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
            return await self._run(self._sessions.infer(model, x, start), deadline)
