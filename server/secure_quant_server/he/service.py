"""SecureInferenceService: hands out public models, passes ciphertexts to the evaluators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from secure_quant import tracing
from secure_quant.errors import ConfigError, DeadlineExceeded, MalformedMessage, ModelNotFound
from secure_quant.he.plan import MAX_BATCH, HePlan
from secure_quant.ir.ops import Conv2d, Linear
from secure_quant.wire import TAKEN, ReceivedModel, info_from_proto
from secure_quant.wire.gen.model_pb2 import ModelInfo
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateLinearRequest,
    EvaluateLinearResponse,
    EvaluateModelRequest,
    EvaluateModelResponse,
    GetModelRequest,
    GetModelResponse,
    OpenSessionRequest,
    OpenSessionResponse,
)
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceServicer
from secure_quant_server.common import Budgets, Metrics, Requests, current_caller
from secure_quant_server.he.leveled import LeveledModels
from secure_quant_server.he.pool import Evaluators

__all__ = ["SERVICE", "SecureInference"]

SERVICE = "secure_quant.v1.SecureInferenceService"
UPLOAD_S = 120.0
AROUND = 2**12
"""What a request holds besides ciphertexts, at most."""
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class _Served:
    index: int
    info: ModelInfo
    steps: int
    request_bytes: int

    @property
    def hash(self) -> str:
        return self.info.model_hash


class SecureInference(SecureInferenceServiceServicer):
    """``infos``: the serialized ModelInfo of each model, as the evaluators made them."""

    def __init__(
        self,
        evaluators: Evaluators,
        infos: Sequence[bytes],
        budgets: Budgets,
        leveled: LeveledModels | None = None,
        requests: Requests | None = None,
    ) -> None:
        self._requests = requests or Requests(Metrics())
        self._evaluators, self._budgets = evaluators, budgets
        self._leveled = leveled or LeveledModels([])
        self._models: dict[str, _Served] = {}
        for index, data in enumerate(infos):
            info = ModelInfo.FromString(data)
            received = info_from_proto(info)
            steps = sum(isinstance(node, Linear | Conv2d) for node in received.graph.nodes)
            if info.model_hash in self._models:
                raise ConfigError("bundles", got=f"model {info.model_hash} twice", expected="once")
            size = _largest_request(received)
            self._models[info.model_hash] = _Served(index, info, steps, size)

    @property
    def hashes(self) -> list[str]:
        """Of the models served."""
        return [*self._models, *self._leveled.hashes]

    @property
    def request_bytes(self) -> int:
        """The longest request that any model here takes."""
        sizes = [model.request_bytes for model in self._models.values()]
        return max([self._leveled.request_bytes, *sizes])

    async def GetModel(  # noqa: N802  the name in the proto
        self, request: GetModelRequest, context: Context
    ) -> GetModelResponse:
        info = self._leveled.info(request.model_hash or self._only())
        if info is not None:
            return GetModelResponse(leveled=info)
        return GetModelResponse(info=self._find(request.model_hash).info)

    async def EvaluateLinear(  # noqa: N802
        self, request: EvaluateLinearRequest, context: Context
    ) -> EvaluateLinearResponse:
        model = self._find(request.model_hash)
        if request.step >= model.steps:
            raise MalformedMessage("step", got=request.step, expected=f"< {model.steps}")
        if request.batch < 1:
            raise MalformedMessage("batch", got=request.batch, expected=">= 1")
        tracing.note(model=model.hash, step=request.step, samples=request.batch)
        scope = (model.hash, request.step)  # not the request's: "" names the only model, too
        with self._requests.served("he", model.hash, request.batch) as cost:
            await self._budgets.pay(current_caller().name, scope, request.batch)
            answer = await self._evaluators.evaluate(
                model.index, request.step, request.batch, request.ciphertexts
            )
            cost.up, cost.down = len(request.ciphertexts), len(answer)
        return EvaluateLinearResponse(ciphertexts=answer)

    async def OpenSession(  # noqa: N802
        self, request_iterator: AsyncIterator[OpenSessionRequest], context: Context
    ) -> OpenSessionResponse:
        try:
            async with asyncio.timeout(UPLOAD_S):  # nobody holds room for long
                return await self._open(aiter(request_iterator), context, current_caller().name)
        except TimeoutError as error:
            raise DeadlineExceeded("upload", expected=f"<= {UPLOAD_S:g} s") from error

    async def _open(
        self, pieces: AsyncIterator[OpenSessionRequest], context: Context, caller: str
    ) -> OpenSessionResponse:
        first = await anext(pieces, OpenSessionRequest())
        self._check_leveled(first.model_hash)
        model_hash = first.model_hash or self._only()
        await self._budgets.pay(caller, (model_hash, "keys"), 1)
        with self._leveled.upload(caller, model_hash) as upload:
            upload.add(first.keys)
            await context.send_initial_metadata(((TAKEN, "1"),))
            async for piece in pieces:
                upload.add(piece.keys)
            return OpenSessionResponse(session_id=upload.finish())

    async def EvaluateModel(  # noqa: N802
        self, request: EvaluateModelRequest, context: Context
    ) -> EvaluateModelResponse:
        self._check_leveled(request.model_hash)
        caller, model_hash = current_caller().name, request.model_hash or self._only()
        samples = self._leveled.samples(model_hash, len(request.ciphertexts))
        tracing.note(model=model_hash, samples=samples)
        with self._requests.served("he-leveled", model_hash, samples) as cost:
            await self._budgets.pay(caller, (model_hash, "leveled"), samples)
            answer = await self._leveled.evaluate(
                caller, model_hash, request.session_id, request.ciphertexts
            )
            cost.up, cost.down = len(request.ciphertexts), len(answer)
        return EvaluateModelResponse(ciphertexts=answer)

    def _only(self) -> str:
        """The hash of the only model served, or nothing."""
        return self.hashes[0] if len(self.hashes) == 1 else ""

    def _check_leveled(self, model_hash: str) -> None:
        if self._leveled.info(model_hash or self._only()) is None:
            self._find(model_hash)  # raises if there is no such model of either kind
            raise ConfigError("model", got="an integer model", expected="a leveled one")

    def _find(self, model_hash: str) -> _Served:
        found = self._models.get(model_hash or self._only())
        if found is None:
            got = repr(model_hash[:64]) if model_hash else "no hash"
            raise ModelNotFound("model", got=got, expected=f"one of {', '.join(self.hashes)}")
        return found


def _largest_request(received: ReceivedModel) -> int:
    """Of any layer and batch. Raises MalformedModel."""
    steps = HePlan.from_json(received.plan, received.graph).steps
    sizes = (step.call(n).cost.bytes_up for step in steps for n in range(1, MAX_BATCH + 1))
    return AROUND + max(sizes, default=0)
