"""A collector of OpenTelemetry that keeps all it is sent: the spans, and the very bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from patience import ample

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Collector(grpc.GenericRpcHandler):
    """``spans``: (service, span) of everything so far. ``raw``: the messages as they came."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.spans: list[tuple[str, Any]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.unary_unary_rpc_method_handler(self._take) if details.method == EXPORT else None

    def _take(self, data: bytes, context: object) -> bytes:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb

        self.raw.append(data)
        for resource in pb.ExportTraceServiceRequest.FromString(data).resource_spans:
            (name,) = (
                each.value.string_value
                for each in resource.resource.attributes
                if each.key == "service.name"
            )
            self.spans += [(name, span) for scope in resource.scope_spans for span in scope.spans]
        return pb.ExportTraceServiceResponse().SerializeToString()

    def of_trace(self, trace: str) -> list[tuple[str, Any]]:
        return [each for each in self.spans if each[1].trace_id.hex() == trace]

    def until(self, met: Callable[[], bool]) -> None:
        end = time.monotonic() + ample(40)
        while not met():
            assert time.monotonic() < end, sorted((s, span.name) for s, span in self.spans)
            time.sleep(0.1)


def attributes(span: Any) -> dict[str, Any]:
    """Of a span, by name."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


@contextmanager
def collecting() -> Iterator[tuple[str, Collector]]:
    """(its URL, the collector)"""
    made = Collector()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[made])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", made
    finally:
        server.stop(0)
