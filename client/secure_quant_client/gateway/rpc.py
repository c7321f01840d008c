"""The protocol over gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.wire.gen.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from secure_quant.wire.gen.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from secure_quant_client.gateway.asked import Asked, Made, collected, refuse_unknown, seconds_in
from secure_quant_client.gateway.house import EXTENSIONS, NAME, VERSION, House
from secure_quant_client.gateway.served import Tensor
from secure_quant_client.gateway.status import status_of
from secure_quant_client.gateway.tensors import ANSWERED, from_contents, from_raw, to_raw

if TYPE_CHECKING:  # generic in the stubs, not at run time
    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["OpenInference", "Parsing"]

Answer = TypeVar("Answer")


class OpenInference(GRPCInferenceServiceServicer):
    """inference.GRPCInferenceService."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def ServerLive(  # noqa: N802 - the protocol's names
        self, request: ServerLiveRequest, context: Context
    ) -> ServerLiveResponse:
        return ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: ServerReadyRequest, context: Context
    ) -> ServerReadyResponse:
        return ServerReadyResponse(ready=await self._house.reason() is None)

    async def ModelReady(  # noqa: N802
        self, request: ModelReadyRequest, context: Context
    ) -> ModelReadyResponse:
        async def asked() -> ModelReadyResponse:
            reason = await self._house.reason(request.name, request.version)
            return ModelReadyResponse(ready=reason is None)

        return await _answered(asked, context)

    async def ServerMetadata(  # noqa: N802
        self, request: ServerMetadataRequest, context: Context
    ) -> ServerMetadataResponse:
        return ServerMetadataResponse(name=NAME, version=VERSION, extensions=EXTENSIONS)

    async def ModelMetadata(  # noqa: N802
        self, request: ModelMetadataRequest, context: Context
    ) -> ModelMetadataResponse:
        async def asked() -> ModelMetadataResponse:
            served = self._house.model(request.name)
            version = await served.version(request.version)
            inputs, outputs = await served.tensors()
            return ModelMetadataResponse(
                name=served.name, versions=[version], platform=served.platform,
                inputs=map(_told, inputs), outputs=map(_told, outputs),
            )  # fmt: skip

        return await _answered(asked, context)

    async def ModelInfer(  # noqa: N802
        self, request: ModelInferRequest, context: Context
    ) -> ModelInferResponse:
        async def asked() -> ModelInferResponse:
            served = self._house.model(request.model_name)
            made = await served.infer(read(request, context.time_remaining()))
            return written(made, raw=bool(request.raw_input_contents))

        return await _answered(asked, context)


def parsed(handler: Any) -> Any:
    """The handler of a unary method, which names a request that is no message: gRPC would answer
    UNKNOWN. handler: None for a method that there is not."""
    if handler is None or handler.unary_unary is None:
        return handler

    def parse(body: bytes) -> Any:
        try:
            return handler.request_deserializer(body)
        except DecodeError:
            return len(body)

    async def call(request: Any, context: Context) -> Any:
        if isinstance(request, int):
            error = MalformedMessage("request", got=f"{request} bytes", expected="a message")
            await context.abort(*status_of(error))
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(call, parse, handler.response_serializer)


class Parsing(grpc.aio.ServerInterceptor):
    """Every method as ``parsed`` makes it."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        return parsed(await continuation(handler_call_details))


async def _answered(answer: Callable[[], Awaitable[Answer]], context: Context) -> Answer:
    """What ``answer`` returns; its errors become the call's status."""
    try:
        return await answer()
    except Exception as error:
        await context.abort(*status_of(error))
        raise  # abort has raised already: for the types


def read(request: ModelInferRequest, seconds: float | None) -> Asked:
    """seconds: that the call has left. Raises MalformedMessage and InputError's leaves."""
    parameters = _parameters(request.parameters)
    refuse_unknown(parameters)
    stated = seconds_in(parameters)
    limits = [each for each in (seconds, stated) if each is not None]
    names = collected([each.name for each in request.inputs], "inputs")
    if not names:
        raise MalformedMessage("inputs", got="none", expected="an input at least")
    wanted = collected([each.name for each in request.outputs], "outputs")
    for x in request.inputs:
        refuse_unknown(_parameters(x.parameters))
    for y in request.outputs:
        refuse_unknown(_parameters(y.parameters))
    inputs = dict(zip(names, _arrays(request), strict=True))
    return Asked(
        request.model_name, request.model_version, request.id, inputs, wanted,
        min(limits, default=None),
    )  # fmt: skip


def written(made: Made, *, raw: bool) -> ModelInferResponse:
    """raw: outputs as the inputs came."""
    answer = ModelInferResponse(model_name=made.model, model_version=made.version, id=made.id)
    for name, array in made.outputs.items():
        about = answer.outputs.add(name=name, datatype=ANSWERED, shape=array.shape)
        if raw:
            answer.raw_output_contents.append(to_raw(array))
        else:
            about.contents.fp32_contents.extend(array.reshape(-1).tolist())
    return answer


def _arrays(request: ModelInferRequest) -> list[NDArray[Any]]:
    raw = request.raw_input_contents
    if not raw:
        return [from_contents(x.name, x.datatype, x.shape, x.contents) for x in request.inputs]
    if len(raw) != len(request.inputs) or any(x.HasField("contents") for x in request.inputs):
        expected = f"{len(request.inputs)}, and no other contents"
        raise MalformedMessage("raw_input_contents", got=len(raw), expected=expected)
    return [
        from_raw(x.name, x.datatype, x.shape, data)
        for x, data in zip(request.inputs, raw, strict=True)
    ]


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """InferParameters as Python's own."""
    found = {}
    for name, value in given.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(value, kind)
    return found


def _told(tensor: Tensor) -> ModelMetadataResponse.TensorMetadata:
    return ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
    )
