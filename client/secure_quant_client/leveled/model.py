"""A leveled model as its clients know it, and a session with the server under one secret key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.errors import ConfigError, InsecureRefused, MalformedMessage, ShapeMismatch
from secure_quant.he.leveled.model import PublicLeveled, check_input
from secure_quant.he.leveled.plan import LeveledPlan
from secure_quant.he.leveled.wire import key_bytes, request_bytes, response_bytes
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateModelRequest,
    GetModelResponse,
    OpenSessionRequest,
)
from secure_quant_client.stats import InferenceStats
from secure_quant_client.trust import bound_unpinned

if TYPE_CHECKING:
    from secure_quant_client.leveled.keys import LeveledKeys

__all__ = ["LeveledSession", "RemoteLeveled", "check_bounds"]

CHUNK = 2**20
MAX_SAMPLES = 16
"""In one call."""

Floats = NDArray[np.float64]


def check_bounds(answers_per_key: int, tolerance: float) -> None:
    """Raises ConfigError for what bounds nothing."""
    if type(answers_per_key) is not int or answers_per_key < 1:
        raise ConfigError("answers_per_key", got=answers_per_key, expected="an integer >= 1")
    if not 0 < tolerance < float("inf"):
        raise ConfigError("tolerance", got=tolerance, expected="> 0, in units of the output")


@dataclass(frozen=True)
class RemoteLeveled:
    """plan: public; the hash is checked. batch: samples in one call. answers_per_key: samples under
    one secret key."""

    plan: LeveledPlan
    batch: int
    answers_per_key: int

    @classmethod
    def receive(
        cls,
        answer: GetModelResponse,
        expected_hash: str | None,
        *,
        message_bytes: int,
        answers_per_key: int,
        tolerance: float,
    ) -> RemoteLeveled:
        """Raises HashMismatch, MalformedModel and its kin, PlanMismatch, MalformedMessage,
        MessageTooLarge for keys too large to be made unasked; InsecureRefused for an error bound
        above ``tolerance``: it is the server's word, and what an answer may hide in."""
        if not answer.HasField("leveled"):
            raise MalformedMessage("model", got="an integer model", expected="a leveled one")
        info = answer.leveled
        public = PublicLeveled.from_json(info.public_model, expected_hash=expected_hash)
        plan = LeveledPlan.from_json(info.plan, public)
        plan.require_own()
        bound_unpinned("evaluation keys", key_bytes(plan) + request_bytes(plan), expected_hash)
        if plan.error_bound > tolerance:
            raise InsecureRefused(
                "error bound of the plan", got=f"{plan.error_bound:.3g}",
                expected=f"<= {tolerance:g}", hint="give the client the owner's tolerance",
            )  # fmt: skip
        fitting = message_bytes // (2 * request_bytes(plan))
        return cls(plan, max(1, min(MAX_SAMPLES, fitting, answers_per_key)), answers_per_key)

    def parts(self, x: ArrayLike) -> list[Floats]:
        """float64[<= batch, ...] each. Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange."""
        values = check_input(self.plan.public, x)
        if not len(values):
            expected = f"[batch >= 1, {self.plan.public.widths[0]}]"
            raise ShapeMismatch("input", got=list(values.shape), expected=expected)
        return [values[i : i + self.batch] for i in range(0, len(values), self.batch)]

    def new_session(self) -> LeveledSession:
        """A fresh secret key: seconds of computation, megabytes to upload."""
        from secure_quant_client.leveled.keys import LeveledKeys  # loads the engine

        keys = LeveledKeys(self.plan)
        return LeveledSession(self.plan, keys, keys.evaluation_keys(), self.answers_per_key)

    def stats(self, start: float, samples: int, calls: int) -> InferenceStats:
        """Of an inference that began at ``start`` (``perf_counter``) and ends now."""
        return InferenceStats(
            latency=time.perf_counter() - start,
            samples=samples,
            rounds=calls,
            bytes_up=samples * request_bytes(self.plan),
            bytes_down=samples * response_bytes(self.plan),
        )


@dataclass
class LeveledSession:
    """id: what the server calls the uploaded ``evaluation_keys``. left: samples that may still be
    asked under this key."""

    plan: LeveledPlan
    keys: LeveledKeys = field(repr=False)
    evaluation_keys: bytes = field(repr=False)
    left: int
    id: bytes = field(default=b"", repr=False)

    def upload(self) -> Iterator[OpenSessionRequest]:
        """The model, and then its evaluation keys in pieces."""
        data, model = self.evaluation_keys, self.plan.public.hash
        yield OpenSessionRequest(model_hash=model)
        for start in range(0, len(data), CHUNK):
            yield OpenSessionRequest(model_hash=model, keys=data[start : start + CHUNK])

    def opened(self, session_id: bytes) -> int:
        """The server has the keys, and this side need not hold them; their bytes."""
        size, self.evaluation_keys, self.id = len(self.evaluation_keys), b"", session_id
        return size

    def request(self, x: Floats) -> EvaluateModelRequest:
        """float64[batch, ...], encrypted."""
        self.left -= len(x)
        ciphertexts = b"".join(self.keys.encrypt(x))
        return EvaluateModelRequest(
            model_hash=self.plan.public.hash, session_id=self.id, ciphertexts=ciphertexts
        )

    def open(self, ciphertexts: bytes, samples: int) -> Floats:
        """The answer, float64[samples, outputs]. Raises MalformedMessage, ImplausibleAnswer."""
        size = response_bytes(self.plan)
        if len(ciphertexts) != size * samples:
            got, expected = f"{len(ciphertexts)} bytes", f"{size * samples}"
            raise MalformedMessage("response", got=got, expected=expected)
        parts = [ciphertexts[i : i + size] for i in range(0, len(ciphertexts), size)]
        return np.stack([self.keys.decrypt(part) for part in parts])
