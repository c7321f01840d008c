"""Leveled models: who may use which session, and the processes that hold its keys.

The front keeps evaluation keys as the bytes they came in, whose length is all it looks at. A worker
unpacks them, for one session at a time.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from secure_quant.errors import (
    ConfigError,
    MalformedMessage,
    ModelNotFound,
    Overloaded,
    SessionNotFound,
)
from secure_quant.he.leveled.model import PublicLeveled
from secure_quant.he.leveled.plan import LeveledPlan
from secure_quant.he.leveled.wire import key_bytes, request_bytes
from secure_quant.wire.gen.secure_inference_pb2 import LeveledInfo
from secure_quant_server.he.pool import Pool
from secure_quant_server.he.process import WorkerProcess

__all__ = ["LeveledModels", "Upload"]

SESSION_BYTES = 512 * 2**20
"""Of all evaluation keys held and on their way."""
MAX_SAMPLES = 64
"""In one call."""
OPEN, EVALUATE = 0, 1
"""``step`` in the frame to a worker."""


@dataclass(frozen=True)
class _Served:
    index: int
    info: LeveledInfo
    plan: LeveledPlan


@dataclass(frozen=True)
class _HeldSession:
    caller: str
    model: _Served
    keys: bytes


class _Worker(WorkerProcess):
    """Knows whose keys it has loaded."""

    session = b""

    def __init__(self) -> None:
        super().__init__("secure_quant_server.he.leveled_worker")


class _LeveledPool(Pool):
    async def evaluate_samples(
        self, key: bytes, session: _HeldSession, ciphertexts: bytes
    ) -> bytes:
        """All samples on one worker, which loads the session's keys if it has others."""
        worker = await self._idle.get()
        size = request_bytes(session.model.plan)
        parts = [ciphertexts[i : i + size] for i in range(0, len(ciphertexts), size)]
        work = _evaluate(worker, key, session, parts)
        limit = self._limit * (1 + len(parts))
        return await asyncio.shield(self._spawn(self._held(worker, work, limit)))

    def _make(self) -> WorkerProcess:
        return _Worker()


async def _evaluate(
    worker: WorkerProcess, key: bytes, session: _HeldSession, parts: Sequence[bytes]
) -> bytes:
    if not isinstance(worker, _Worker):
        raise ConfigError("worker", got=type(worker).__name__, expected="one for leveled models")
    model = session.model.index
    if worker.session != key:
        worker.session = b""
        await worker.evaluate(model, OPEN, 0, session.keys)
        worker.session = key
    answers = [await worker.evaluate(model, EVALUATE, 1, part) for part in parts]
    return b"".join(answers)


class LeveledModels:
    """The leveled models of one server. ``bundles`` may be none; no process is started then."""

    def __init__(
        self, bundles: Sequence[bytes], workers: int | None = None, *, limit_s: float = 30.0
    ) -> None:
        count = max(1, len(os.sched_getaffinity(0)) if workers is None else workers)
        self._pool = _LeveledPool(bundles, count, limit_s=limit_s) if bundles else None
        self._models: dict[str, _Served] = {}
        self._sessions: OrderedDict[bytes, _HeldSession] = OrderedDict()
        self._bytes = 0

    @property
    def hashes(self) -> list[str]:
        return list(self._models)

    @property
    def available(self) -> bool:
        """Whether a request would find a worker; also where nothing is served."""
        return self._pool is None or self._pool.available

    async def start(self) -> None:
        """Load the models. Raises MalformedModel and its kin, ConfigError."""
        if self._pool is None:
            return
        for index, data in enumerate(await self._pool.start()):
            info = LeveledInfo.FromString(data)
            public = PublicLeveled.from_json(info.public_model)
            if public.hash in self._models:
                raise ConfigError("bundles", got=f"model {public.hash} twice", expected="once")
            plan = LeveledPlan.from_json(info.plan, public)
            self._models[public.hash] = _Served(index, info, plan)

    async def stop(self) -> None:
        """End the workers and forget every key."""
        self._sessions.clear()
        if self._pool is not None:
            await self._pool.stop()

    def info(self, model_hash: str) -> LeveledInfo | None:
        """What clients are told of a leveled model; None if there is none of that hash."""
        found = self._models.get(model_hash)
        return found.info if found else None

    def upload(self, caller: str, model_hash: str) -> Upload:
        """Room for a session's keys. Raises ModelNotFound, Overloaded."""
        return Upload(self, caller, self._find(model_hash))

    def samples(self, model_hash: str, length: int) -> int:
        """In a request of that many bytes. Raises ModelNotFound, MalformedMessage."""
        size = request_bytes(self._find(model_hash).plan)
        count, rest = divmod(length, size)
        if rest or not 1 <= count <= MAX_SAMPLES:
            expected = f"1 to {MAX_SAMPLES} times {size}"
            raise MalformedMessage("ciphertexts", got=f"{length} bytes", expected=expected)
        return count

    async def evaluate(
        self, caller: str, model_hash: str, session_id: bytes, ciphertexts: bytes
    ) -> bytes:
        """Raises SessionNotFound, MalformedMessage, InternalError, DeadlineExceeded."""
        session = self._sessions.get(session_id)
        known = session is not None and session.caller == caller
        if session is None or not known or session.model is not self._find(model_hash):
            raise SessionNotFound("session", hint="open another")
        self._sessions.move_to_end(session_id)
        if self._pool is None:
            raise ModelNotFound("model", got="none is served")
        return await self._pool.evaluate_samples(session_id, session, ciphertexts)

    def _find(self, model_hash: str) -> _Served:
        found = self._models.get(model_hash)
        if found is None:
            raise ModelNotFound("leveled model", got=repr(model_hash[:64]))
        return found

    def reserve(self, count: int) -> None:
        """Sessions unused longest go to make room. Raises Overloaded."""
        while self._bytes + count > SESSION_BYTES and self._sessions:
            _, oldest = self._sessions.popitem(last=False)
            self._bytes -= len(oldest.keys)
        if self._bytes + count > SESSION_BYTES:
            raise Overloaded("evaluation keys", expected=f"<= {SESSION_BYTES} bytes at once")
        self._bytes += count

    def release(self, count: int) -> None:
        """Give back what was reserved."""
        self._bytes -= count

    def keep(self, caller: str, model: _Served, keys: bytes) -> bytes:
        """The id of a new session; its bytes were reserved."""
        session_id = secrets.token_bytes(16)
        self._sessions[session_id] = _HeldSession(caller, model, keys)
        return session_id


class Upload(AbstractContextManager["Upload"]):
    """Pieces of evaluation keys as they come in; room for all of them is taken first."""

    def __init__(self, models: LeveledModels, caller: str, model: _Served) -> None:
        self._models, self._caller, self._model = models, caller, model
        self._size, self._kept = key_bytes(model.plan), False
        self._data = bytearray()
        models.reserve(self._size)

    def add(self, piece: bytes) -> None:
        """Raises MalformedMessage for more than the plan implies."""
        if len(self._data) + len(piece) > self._size:
            raise MalformedMessage("evaluation keys", got="more", expected=f"{self._size} bytes")
        self._data += piece

    def finish(self) -> bytes:
        """The session's id. Raises MalformedMessage for less than the plan implies."""
        if len(self._data) != self._size:
            got = f"{len(self._data)} bytes"
            raise MalformedMessage("evaluation keys", got=got, expected=f"{self._size}")
        self._kept = True
        return self._models.keep(self._caller, self._model, bytes(self._data))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._kept:
            self._models.release(self._size)
