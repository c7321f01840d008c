"""Run inside an environment of tools/compat.py: imports a neighbour and us, and really uses us.

    python -I compat_smoke.py VECTORS MODULE...

VECTORS is tests/vectors: the frozen model, and its independent verifier, which uses neither numpy
nor anything of ours. The last line is "ok".
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HEAVY = {"torch", "torchao", "crypten", "numba", "sklearn"}
START_SECONDS = 120.0
SHOWN = (
    "aiohttp", "cryptography", "grpcio", "numpy", "opentelemetry-sdk", "protobuf", "redis",
    "tenseal",
)  # fmt: skip


def verifier(vectors: Path) -> Any:
    """The module tests/vectors/verify_tiny_model.py."""
    spec = importlib.util.spec_from_file_location("verifier", vectors / "verify_tiny_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def need(fine: bool, what: str) -> None:
    """End with exit status 1 unless ``fine``."""
    if not fine:
        raise SystemExit(f"failed: {what}")


def light_client(before: set[str]) -> None:
    """The client comes in without torch, unless the neighbour brought it."""
    client = importlib.import_module("secure_quant_client")
    for name in client.__all__:
        getattr(client, name)
    need(Path(client.__file__).is_relative_to(sys.prefix), f"{client.__file__} is not installed")
    # The neighbours register the same names of the Open Inference Protocol as we have.
    protocol = importlib.import_module("secure_quant.wire.gen.open_inference_pb2")
    need(protocol.ServerLiveResponse(live=True).live, "the gateway's messages")
    ours = (HEAVY & set(sys.modules)) - before
    need(not ours, f"the client imported {sorted(ours)}")


def same_answers(vectors: Path) -> tuple[Any, Any, list[list[int]]]:
    """The frozen model, inputs int8[20, 3] and what the independent verifier answers."""
    from secure_quant import reference
    from secure_quant.ir import load

    independent, path = verifier(vectors), vectors / "tiny_model.sq"
    graph, found = load(path), independent.read(path.read_bytes())
    q = np.random.default_rng(1).integers(-128, 128, (20, 3)).astype(np.int8)
    want = [independent.infer(found, row) for row in q.tolist()]
    need(reference.run_int(graph, q).tolist() == want, "the reference differs from the verifier")
    return graph, q, want


def wire_round_trip(graph: Any) -> None:
    """Through this environment's protobuf and back."""
    from secure_quant.wire import graph_from_proto, graph_to_proto
    from secure_quant.wire.gen.model_pb2 import PublicModel

    public = graph.public()
    back = graph_from_proto(PublicModel.FromString(graph_to_proto(public).SerializeToString()))
    need(back.hash == graph.hash and back.nodes == public.nodes, "the wire changed the model")


def encrypted(graph: Any, q: Any, want: list[list[int]]) -> None:
    """A server process that sends spans, a client, and a caller of a gateway, on loopback."""
    from secure_quant.transport import Tls
    from secure_quant.transport.certs import make_all
    from secure_quant_cli.cluster import Cluster
    from secure_quant_cli.split import split_for, write_bundles
    from secure_quant_client import HeClient

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bundles(split_for(graph, "he"), folder / "he")
        make_all(folder / "certs")
        traces = {"he": ["--traces", "http://127.0.0.1:1"]}  # where nobody listens
        bundles = {"he": folder / "he"}
        with Cluster(folder / "certs", folder / "logs", bundles, options=traces) as cluster:
            tls = Tls.from_dir(folder / "certs", "client")
            with HeClient(cluster.targets["he"][0], tls=tls, expected_hash=graph.hash) as client:
                got = client.infer_int8(q)
            over_http(cluster, graph, q, folder / "gateway.log")
    need(got.tolist() == want, "homomorphic encryption differs from the verifier")


def over_http(cluster: Any, graph: Any, q: Any, log: Path) -> None:
    """One request in the Open Inference Protocol, as curl would send it."""
    from secure_quant import reference
    from secure_quant_cli.cluster import free_ports

    listen, http = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [sys.executable, "-m", "secure_quant_cli", "gateway", "--engine", "he"]
    command += ["--target", cluster.targets["he"][0], "--tls", str(cluster.certs)]
    command += ["--model", f"m={graph.hash}", "--listen", listen, "--http-listen", http]
    (port,), x = graph.input_ports, (q.astype(np.float32) - graph.input.zero_point)
    x *= np.float32(graph.input.scale)
    asked = {"name": port.name, "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [asked]}).encode()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--until-stdin-closes"], stdin=subprocess.PIPE, stdout=file, stderr=file
        )
    try:
        url, end = f"http://{http}/v2/models/m/infer", time.monotonic() + START_SECONDS
        while True:
            try:
                answer = json.load(urllib.request.urlopen(url, body))
                break
            except OSError as error:
                late = time.monotonic() > end or process.poll() is not None
                need(not late, f"the gateway: {error}: {log.read_text()[-2000:]}")
                time.sleep(0.2)
    finally:
        process.kill()
        process.communicate()
    found = np.array(answer["outputs"][0]["data"], np.float32)
    need(np.array_equal(found, reference.run(graph, x).ravel()), "the gateway's answer differs")


def budgets() -> None:
    """A store of budgets that is not there is away, and no error of a library's."""
    from secure_quant_server.common.shared_budgets import why_away

    with tempfile.NamedTemporaryFile("w") as file:
        file.write("redis://127.0.0.1:1")
        file.flush()
        reason = asyncio.run(why_away(file.name)) or "nothing"
    need("ConnectionError" in reason, f"the store of budgets is away for {reason}")


def protos() -> None:
    """The wheel holds the wire's definition."""
    folder = Path(importlib.import_module("secure_quant").__file__).parent / "v1"
    need(len(list(folder.glob("*.proto"))) >= 5, "no protos in the wheel")


def refused_without_torch() -> None:
    """Where torch is missing, the command that adds CrypTen says what to do first."""
    command = (sys.executable, "-m", "secure_quant_cli", "add-crypten")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    need(done.returncode == 2 and "the extra 'mpc'" in done.stderr, f"got {done.stderr!r}")


def main() -> int:
    """Exit status 0, or a message and 1."""
    vectors, *modules = sys.argv[1:]
    for name in modules:
        importlib.import_module(name)
    light_client(HEAVY & set(sys.modules))
    graph, q, want = same_answers(Path(vectors))
    wire_round_trip(graph)
    encrypted(graph, q, want)
    budgets()
    protos()
    if importlib.util.find_spec("torch") is None:
        refused_without_torch()
    print(json.dumps({name: version(name) for name in SHOWN}))
    print("ok")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
