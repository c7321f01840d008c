"""Callers of a gateway: the Open Inference Protocol with what Python brings, and the gateway itself
as a process before running servers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import PeerUnavailable
from secure_quant.wire import raised
from secure_quant.wire.gen import open_inference_pb2 as pb
from secure_quant.wire.gen.open_inference_pb2_grpc import GRPCInferenceServiceStub
from secure_quant_cli.cluster import Cluster, free_ports

START_S = 60.0
HEADER = "Inference-Header-Content-Length"


class GrpcCaller:
    """One connection. infer: float32[batch, ...] of the model's one input -> its one output."""

    def __init__(self, target: str, name: str) -> None:
        self._channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
        self._stub, self._name = GRPCInferenceServiceStub(self._channel), name

    def infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        request = pb.ModelInferRequest(model_name="model", raw_input_contents=[x.tobytes()])
        request.inputs.add(name=self._name, datatype="FP32", shape=x.shape)
        try:
            answer = self._stub.ModelInfer(request, timeout=30)
        except grpc.RpcError as error:
            raise raised(error) from error
        found = np.frombuffer(answer.raw_output_contents[0], "<f4")
        return found.reshape(tuple(answer.outputs[0].shape))

    def close(self) -> None:
        self._channel.close()


class HttpCaller:
    """The same over HTTP, tensors in binary."""

    def __init__(self, target: str, name: str) -> None:
        self._connection, self._name = HTTPConnection(*target.split(":"), timeout=30), name

    def infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        raw = x.tobytes()
        about = {"name": self._name, "datatype": "FP32", "shape": x.shape,
                 "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
        document = {"inputs": [about], "parameters": {"binary_data_output": True}}
        text = json.dumps(document).encode()
        headers = {HEADER: str(len(text))}
        self._connection.request("POST", "/v2/models/model/infer", text + raw, headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise PeerUnavailable(json.loads(body)["error"])
        size = int(response.headers[HEADER])
        (output,) = json.loads(body[:size])["outputs"]
        return np.frombuffer(body[size:], "<f4").reshape(output["shape"])

    def close(self) -> None:
        self._connection.close()


@contextmanager
def gateway(
    cluster: Cluster, engine: str, model_hash: str, log: Path
) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """``host:port`` of its gRPC and HTTP, ready; and its process."""
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    command = [sys.executable, "-m", "secure_quant_cli", "gateway", "--engine", engine]
    command += ["--target", ",".join(cluster.targets[engine]), "--tls", str(cluster.certs)]
    command += ["--model", f"model={model_hash}", "--listen", ports[0], "--http-listen", ports[1]]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, "--until-stdin-closes"], stdin=subprocess.PIPE, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until = time.monotonic() + START_S
        while not _ready(ports[0]):
            if process.poll() is not None or time.monotonic() > until:
                raise PeerUnavailable("the gateway does not serve", got=log.read_text()[-300:])
            time.sleep(0.1)
        yield ports[0], ports[1], process
    finally:
        process.kill()
        process.communicate()


def _ready(target: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        try:
            return bool(stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready)
        except grpc.RpcError:
            return False
