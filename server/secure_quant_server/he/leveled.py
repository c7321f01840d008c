"""Leveled models: who may use which session, and the processes that hold its keys.

The front keeps evaluation keys as the bytes they came in, whose length is all it looks at. A worker
unpacks them, for one session at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from secure_quant.errors import ConfigError, MalformedMessage, ModelNotFound, SessionNotFound
from secure_quant.he.leveled.model import PublicLeveled
from secure_quant.he.leveled.plan import LeveledPlan
from secure_quant.he.leveled.wire import key_bytes, request_bytes
from secure_quant.wire.gen.secure_inference_pb2 import LeveledInfo
from secure_quant_server.common.workers import WorkerKind
from secure_quant_server.he.frames import ANSWERS
from secure_quant_server.he.key_store import KeyStore, Upload
from secure_quant_server.he.pool import Pool
from secure_quant_server.he.process import WorkerProcess

__all__ = ["LeveledModels"]

MAX_SAMPLES = 64
"""In one call."""
PIECE = 4 * 2**20
"""Of evaluation keys in one message; clients send a quarter of it."""
AROUND = 2**12
"""What a request holds besides ciphertexts or keys, at most."""
OPEN, EVALUATE = 0, 1
"""``step`` in the frame to a worker."""
KIND = WorkerKind(
    name="leveled",
    entry="secure_quant_server.he.leveled_worker:serve",
    modules=("secure_quant_server.he.leveled_worker",),
    answers=ANSWERS,
    memory=6 * 2**30,  # of address space, so that no request can take the memory of the machine
)


@dataclass(frozen=True)
class _Served:
    index: int
    info: LeveledInfo
    plan: LeveledPlan


class _LeveledPool(Pool):
    async def evaluate_samples(
        self, model: _Served, key: bytes, keys: bytes, ciphertexts: bytes
    ) -> bytes:
        """All samples on one worker, which loads the session's keys if it has others."""
        size = request_bytes(model.plan)
        parts = [ciphertexts[i : i + size] for i in range(0, len(ciphertexts), size)]
        limit_s = self._limit * (1 + len(parts))
        return await self._given(
            lambda worker: _evaluate(worker, model.index, key, keys, parts), limit_s
        )


async def _evaluate(
    worker: WorkerProcess, model: int, key: bytes, keys: bytes, parts: Sequence[bytes]
) -> bytes:
    if worker.session != key:
        worker.session = b""
        await worker.evaluate(model, OPEN, 0, keys)
        worker.session = key
    answers = [await worker.evaluate(model, EVALUATE, 1, part) for part in parts]
    return b"".join(answers)


class LeveledModels:
    """The leveled models of one server. ``bundles`` may be none; no process is started then."""

    def __init__(
        self, bundles: Sequence[bytes], workers: int | None = None, *, limit_s: float = 30.0
    ) -> None:
        count = max(1, len(os.sched_getaffinity(0)) if workers is None else workers)
        self._pool = _LeveledPool(bundles, count, KIND, limit_s=limit_s) if bundles else None
        self._models: dict[str, _Served] = {}
        self._keys = KeyStore(0)

    @property
    def pool(self) -> Pool | None:
        """Its worker processes, where leveled models are served."""
        return self._pool

    @property
    def hashes(self) -> list[str]:
        return list(self._models)

    @property
    def request_bytes(self) -> int:
        """The longest request that any model here looks at: one sample more than it takes."""
        sizes = [(MAX_SAMPLES + 1) * request_bytes(each.plan) for each in self._models.values()]
        return AROUND + max([PIECE, *sizes])

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
        self._keys = KeyStore(max(key_bytes(model.plan) for model in self._models.values()))

    async def stop(self) -> None:
        """End the workers and forget every key."""
        self._keys.clear()
        if self._pool is not None:
            await self._pool.stop()

    async def drain(self) -> None:
        """Take no more requests, and let those that are here be answered."""
        if self._pool is not None:
            await self._pool.drain()

    def info(self, model_hash: str) -> LeveledInfo | None:
        """What clients are told of a leveled model; None if there is none of that hash."""
        found = self._models.get(model_hash)
        return found.info if found else None

    def upload(self, caller: str, model_hash: str) -> Upload:
        """A session's keys on their way. Raises ModelNotFound, Overloaded."""
        return self._keys.upload(caller, model_hash, key_bytes(self._find(model_hash).plan))

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
        model, session = self._find(model_hash), self._keys.find(session_id)
        if session is None or (session.caller, session.model_hash) != (caller, model_hash):
            raise SessionNotFound("session", hint="open another")
        if self._pool is None:
            raise ModelNotFound("model", got="none is served")
        return await self._pool.evaluate_samples(model, session_id, session.keys, ciphertexts)

    def _find(self, model_hash: str) -> _Served:
        found = self._models.get(model_hash)
        if found is None:
            raise ModelNotFound("leveled model", got=repr(model_hash[:64]))
        return found
