"""Approximate inference in one round trip: shallow models under leveled CKKS."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.errors import MalformedMessage, ServiceError, SessionNotFound
from secure_quant.he.leveled.model import PublicLeveled, check_input
from secure_quant.he.leveled.plan import LeveledPlan
from secure_quant.he.leveled.wire import request_bytes, response_bytes
from secure_quant.transport import Limits, Security, sync_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateModelRequest,
    GetModelRequest,
    OpenSessionRequest,
)
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client.base import Deadline, call_metadata
from secure_quant_client.stats import InferenceStats

if TYPE_CHECKING:
    from secure_quant.protect.leveled import LeveledKeys

__all__ = ["LeveledClient"]

CHUNK = 2**20
MAX_SAMPLES = 16
"""In one call."""


class LeveledClient:
    """A connection to a homomorphic-encryption server that serves a leveled model.

    target, tls, expected_hash, token, limits: as HeClient. Threads take turns.

    The first inference makes a secret key and uploads its evaluation keys, megabytes; later ones
    are one round trip each. Unlike HeClient, this client sees outputs only, and they are
    **approximate**: off by at most ``error_bound`` unless with probability below 2^-40. Their last
    digits depend on the secret key: do not hand them back to the server in full precision; round
    them to what the bound allows, or call ``renew`` first.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Security,
        expected_hash: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._metadata = call_metadata(tls, token)
        self._channel = sync_channel(target, tls, server_role="he", limits=self._limits)
        self._stub = SecureInferenceServiceStub(self._channel)
        self._expected_hash = expected_hash
        self._plan: LeveledPlan | None = None
        self._keys: LeveledKeys | None = None
        self._session_id = b""
        self._key_bytes_up = 0
        self._lock = threading.RLock()
        self._stats: InferenceStats | None = None
        self._closed = False

    def __enter__(self) -> LeveledClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connection and the keys."""
        self._closed = True
        self.renew()
        self._channel.close()

    def renew(self) -> None:
        """Forget the secret key; the next inference makes another and uploads again."""
        with self._lock:
            self._keys, self._session_id = None, b""

    @property
    def plan(self) -> LeveledPlan:
        """Public: parameters, the model's widths and hash. Raises HashMismatch and the like."""
        return self._connect(Deadline(self._limits.deadline_s))

    @property
    def error_bound(self) -> float:
        """Largest error of any output, in units of the output."""
        return self.plan.error_bound

    @property
    def key_bytes_up(self) -> int:
        """Evaluation keys uploaded so far, by all sessions."""
        return self._key_bytes_up

    @property
    def stats(self) -> InferenceStats:
        """Of the last inference, uploads of keys not counted in its bytes. Raises ServiceError
        before the first."""
        if self._stats is None:
            raise ServiceError("no inference yet")
        return self._stats

    def prepare(self) -> None:
        """Connect, make keys and upload them now rather than at the first inference."""
        with self._lock:
            deadline = Deadline(self._limits.deadline_s)
            self._session(self._connect(deadline), deadline)

    def infer(self, x: ArrayLike, *, timeout: float | None = None) -> NDArray[np.float64]:
        """float[batch, ...] -> float64[batch, out]; values beyond the input bound are clipped.

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN or infinity).
        """
        with self._lock:
            start = time.perf_counter()
            deadline = Deadline(self._limits.deadline_s if timeout is None else timeout)
            plan = self._connect(deadline)
            values = check_input(plan.public, x)
            step = max(1, min(MAX_SAMPLES, self._limits.message_bytes // (2 * request_bytes(plan))))
            parts = [values[i : i + step] for i in range(0, len(values), step)]
            made = [self._infer(plan, part, deadline) for part in parts]
            self._stats = InferenceStats(
                latency=time.perf_counter() - start,
                samples=len(values),
                rounds=len(parts),
                bytes_up=len(values) * request_bytes(plan),
                bytes_down=len(values) * response_bytes(plan),
            )
            return np.concatenate(made) if made else np.empty((0, plan.outputs))

    def _infer(
        self, plan: LeveledPlan, x: NDArray[np.float64], deadline: Deadline
    ) -> NDArray[np.float64]:
        for last in (False, True):
            keys = self._session(plan, deadline)
            try:
                answer = self._evaluate(plan, b"".join(keys.encrypt(x)), deadline)
            except SessionNotFound:
                self.renew()  # the server restarted or needed the room
                if last:
                    raise
                continue
            break
        size = response_bytes(plan)
        if len(answer) != size * len(x):
            expected = f"{size * len(x)}"
            raise MalformedMessage("response", got=f"{len(answer)} bytes", expected=expected)
        parts = [answer[i : i + size] for i in range(0, len(answer), size)]
        return np.stack([keys.decrypt(part) for part in parts])

    def _evaluate(self, plan: LeveledPlan, ciphertexts: bytes, deadline: Deadline) -> bytes:
        request = EvaluateModelRequest(
            model_hash=plan.public.hash, session_id=self._session_id, ciphertexts=ciphertexts
        )
        try:
            answer = self._stub.EvaluateModel(
                request, timeout=deadline.remaining(), metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise raised(error) from error
        return answer.ciphertexts

    def _session(self, plan: LeveledPlan, deadline: Deadline) -> LeveledKeys:
        if self._keys is None:
            from secure_quant.protect.leveled import LeveledKeys  # loads the engine

            keys = LeveledKeys(plan)
            data = keys.evaluation_keys()
            try:
                answer = self._stub.OpenSession(
                    _pieces(plan.public.hash, data),
                    timeout=deadline.remaining(),
                    metadata=self._metadata,
                )
            except grpc.RpcError as error:
                raise raised(error) from error
            self._keys, self._session_id = keys, answer.session_id
            self._key_bytes_up += len(data)
        return self._keys

    def _connect(self, deadline: Deadline) -> LeveledPlan:
        with self._lock:
            if self._closed:
                raise ServiceError("the client is closed")
            if self._plan is None:
                request = GetModelRequest(model_hash=self._expected_hash or "")
                try:
                    answer = self._stub.GetModel(
                        request, timeout=deadline.remaining(), metadata=self._metadata
                    )
                except grpc.RpcError as error:
                    raise raised(error) from error
                if not answer.HasField("leveled"):
                    raise MalformedMessage(
                        "model", got="an integer model", expected="a leveled one"
                    )
                info = answer.leveled
                public = PublicLeveled.from_json(
                    info.public_model, expected_hash=self._expected_hash
                )
                self._plan = LeveledPlan.from_json(info.plan, public)
            return self._plan


def _pieces(model_hash: str, data: bytes) -> Iterator[OpenSessionRequest]:
    for start in range(0, len(data), CHUNK):
        yield OpenSessionRequest(model_hash=model_hash, keys=data[start : start + CHUNK])
