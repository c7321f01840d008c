"""The client, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from plain_insecure.model import PlainModel
from secure_quant.wire.gen.model_pb2 import ModelInfo
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest
from secure_quant_client.connection import OneServer, Service
from secure_quant_client.exact import AsyncIntegerClient, IntegerClient

__all__ = ["AsyncPlainInsecureClient", "PlainInsecureClient"]


class Stub:
    """As a generated file would make it."""

    def __init__(self, channel: Any) -> None:
        self.GetModel = channel.unary_unary(
            "/plain_insecure.PlainInsecureService/GetModel",
            request_serializer=GetModelRequest.SerializeToString,
            response_deserializer=ModelInfo.FromString,
        )
        self.Infer = channel.unary_unary(
            "/plain_insecure.PlainInsecureService/Infer",
            request_serializer=BytesValue.SerializeToString,
            response_deserializer=BytesValue.FromString,
        )


class _Plain(OneServer[PlainModel]):
    """What both faces share."""

    _service = Service(("plain-insecure",), Stub, GetModelRequest)

    def _receive(self, answers: Sequence[ModelInfo]) -> PlainModel:
        return PlainModel.receive(answers[0], self._expected_hash)


class PlainInsecureClient(_Plain, IntegerClient[PlainModel]):
    """A connection to a server that reads every input. The arguments are those of HeClient."""


class AsyncPlainInsecureClient(_Plain, AsyncIntegerClient[PlainModel]):
    """See PlainInsecureClient. Make it inside the event loop that uses it."""
