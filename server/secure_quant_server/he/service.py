"""SecureInferenceService: hands out public models, passes ciphertexts to the evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from secure_quant.errors import ConfigError, MalformedMessage, ModelNotFound
from secure_quant.ir.ops import Conv2d, Linear
from secure_quant.wire import info_from_proto
from secure_quant.wire.gen.model_pb2 import ModelInfo
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateLinearRequest,
    EvaluateLinearResponse,
    GetModelRequest,
    GetModelResponse,
)
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceServicer
from secure_quant_server.common import Budgets, current_caller
from secure_quant_server.he.pool import Evaluators

__all__ = ["SERVICE", "SecureInference"]

SERVICE = "secure_quant.v1.SecureInferenceService"
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class _Served:
    index: int
    info: ModelInfo
    steps: int


class SecureInference(SecureInferenceServiceServicer):
    """``infos``: the serialized ModelInfo of each model, as the evaluators made them."""

    def __init__(self, evaluators: Evaluators, infos: Sequence[bytes], budgets: Budgets) -> None:
        self._evaluators, self._budgets = evaluators, budgets
        self._models: dict[str, _Served] = {}
        for index, data in enumerate(infos):
            info = ModelInfo.FromString(data)
            nodes = info_from_proto(info).graph.nodes
            steps = sum(isinstance(node, Linear | Conv2d) for node in nodes)
            if info.model_hash in self._models:
                raise ConfigError("bundles", got=f"model {info.model_hash} twice", expected="once")
            self._models[info.model_hash] = _Served(index, info, steps)

    @property
    def hashes(self) -> list[str]:
        """Of the models served."""
        return list(self._models)

    async def GetModel(  # noqa: N802  the name in the proto
        self, request: GetModelRequest, context: Context
    ) -> GetModelResponse:
        return GetModelResponse(info=self._find(request.model_hash).info)

    async def EvaluateLinear(  # noqa: N802
        self, request: EvaluateLinearRequest, context: Context
    ) -> EvaluateLinearResponse:
        model = self._find(request.model_hash)
        if request.step >= model.steps:
            raise MalformedMessage("step", got=request.step, expected=f"< {model.steps}")
        if request.batch < 1:
            raise MalformedMessage("batch", got=request.batch, expected=">= 1")
        scope = (request.model_hash, request.step)
        self._budgets.charge(current_caller().name, scope, request.batch)
        answer = await self._evaluators.evaluate(
            model.index, request.step, request.batch, request.ciphertexts
        )
        return EvaluateLinearResponse(ciphertexts=answer)

    def _find(self, model_hash: str) -> _Served:
        if not model_hash and len(self._models) == 1:
            return next(iter(self._models.values()))
        found = self._models.get(model_hash)
        if found is None:
            got = repr(model_hash[:64]) if model_hash else "no hash"
            raise ModelNotFound("model", got=got, expected=f"one of {', '.join(self._models)}")
        return found
