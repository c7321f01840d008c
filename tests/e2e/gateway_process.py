"""`secure-quant gateway` as a process before a cluster."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from patience import ample

from secure_quant.wire.gen import open_inference_pb2 as pb
from secure_quant.wire.gen.open_inference_pb2_grpc import GRPCInferenceServiceStub
from secure_quant_cli.cluster import Cluster, free_ports


@dataclass
class GatewayProcess:
    """listen, http: ``host:port`` of either form of the protocol."""

    listen: str
    http: str
    process: subprocess.Popen[bytes]
    log: Path

    def ready(self) -> bool:
        with grpc.insecure_channel(self.listen) as channel:
            stub = GRPCInferenceServiceStub(channel)
            try:
                return bool(stub.ServerReady(pb.ServerReadyRequest(), timeout=ample(5)).ready)
            except grpc.RpcError:
                return False


@contextmanager
def gateway_before(
    cluster: Cluster, engine: str, folder: Path, options: Sequence[str] = ()
) -> Iterator[GatewayProcess]:
    """Ready once the block begins, and gone after it."""
    listen, http = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [sys.executable, "-m", "secure_quant_cli", "gateway", "--engine", engine]
    command += ["--target", ",".join(cluster.targets[engine]), "--tls", str(cluster.certs)]
    command += ["--listen", listen, "--http-listen", http, "--until-stdin-closes", *options]
    log = folder / "gateway.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT
        )
    made = GatewayProcess(listen, http, process, log)
    try:
        until = time.monotonic() + ample(30)
        while not made.ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield made
    finally:
        process.kill()
        process.communicate()
