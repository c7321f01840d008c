"""The server, from options to a clean stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import BytesValue

from plain_insecure.model import MAX_BATCH, PlainServer
from secure_quant.errors import InsecureRefused, ModelNotFound
from secure_quant.wire import info_to_proto
from secure_quant.wire.gen.model_pb2 import ModelInfo
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest
from secure_quant_server.common import (
    Access,
    Budgets,
    GrpcServer,
    Tokens,
    budgets_of,
    current_caller,
    on_stop_signal,
    read_bundle,
)
from secure_quant_server.options import ServerOptions

__all__ = ["SERVICE", "PlainOptions", "serve_plain"]

SERVICE = "plain_insecure.PlainInsecureService"
AROUND = 2**12


@dataclass(frozen=True, kw_only=True)
class PlainOptions(ServerOptions):
    """bundles: one, of the one model that is served."""

    bundles: Sequence[str | os.PathLike[str] | bytes]


class Service:
    """Both methods."""

    def __init__(self, server: PlainServer, budgets: Budgets) -> None:
        self._server, self._budgets = server, budgets

    async def get_model(self, request: GetModelRequest, context: Any) -> ModelInfo:
        if request.model_hash not in ("", self._server.model_hash):
            raise ModelNotFound(
                "model", got=request.model_hash[:64], expected=self._server.model_hash
            )
        return info_to_proto(self._server.plan.graph, self._server.plan.to_json())

    async def infer(self, request: BytesValue, context: Any) -> BytesValue:
        samples = self._server.samples(request.value)
        await self._budgets.pay(current_caller().name, (self._server.model_hash, "input"), samples)
        answer = await asyncio.to_thread(self._server.answer, request.value)
        return BytesValue(value=answer)

    def handler(self) -> grpc.GenericRpcHandler:
        """As a generated file would register it: without a proto, these are no messages of ours."""
        return grpc.method_handlers_generic_handler(SERVICE, {
            "GetModel": grpc.unary_unary_rpc_method_handler(
                self.get_model, GetModelRequest.FromString, ModelInfo.SerializeToString
            ),
            "Infer": grpc.unary_unary_rpc_method_handler(
                self.infer, BytesValue.FromString, BytesValue.SerializeToString
            ),
        })  # fmt: skip


async def serve_plain(options: PlainOptions) -> None:
    """Serve until SIGTERM or SIGINT. Raises InsecureRefused for an address beyond loopback,
    ConfigError, MalformedModel and its kin."""
    host = options.listen.rpartition(":")[0].strip("[]")
    if host != "localhost" and not ip_address(host).is_loopback:
        raise InsecureRefused("listen", got=host, expected="an address of loopback")
    stop = on_stop_signal()
    (bundle,) = options.bundles
    served = PlainServer.load(read_bundle(bundle))
    tokens = Tokens.from_file(options.tokens) if options.tokens is not None else None
    access = Access({SERVICE: frozenset({"client"})}, tokens)
    size = AROUND + served.plan.cost(MAX_BATCH).bytes_up
    server = GrpcServer(options, access, [SERVICE], role="plain-insecure", request_bytes=size)
    budgets = budgets_of(options, "plain-insecure", server.metrics)
    server.server.add_generic_rpc_handlers((Service(served, budgets).handler(),))
    await server.start()
    server.set_serving(True)
    try:
        await stop.wait()
    finally:
        await server.stop()
        await budgets.close()
