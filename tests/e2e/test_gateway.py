"""The gateway as a command before real servers: plain requests, and other people's clients."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from e2e.gateway_process import GatewayProcess, gateway_before
from patience import ample

from conformance.port_cases import ports
from secure_quant import Graph, reference
from secure_quant.engines import find
from secure_quant.transport.certs import make_all
from secure_quant.wire.gen import open_inference_pb2 as pb
from secure_quant.wire.gen.open_inference_pb2_grpc import GRPCInferenceServiceStub
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.main import main

ROOT = Path(__file__).parents[2]
OTHERS = ROOT / ".oip" / "bin" / "python"
DATATYPES = {"picture": "FP32", "row": "FP32", "mask": "BOOL", "words": "INT64"}

pytest.importorskip("aiohttp")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return ports()


def served(engine: str, graph: Graph, folder: Path) -> Cluster:
    make_all(folder / "certs")
    (folder / engine).mkdir()
    for role, data in find(engine).bundles_of(graph).items():
        (folder / engine / f"{role}.sqb").write_bytes(data)
    return Cluster(folder / "certs", folder / "logs", {engine: folder / engine})


@pytest.fixture(scope="module")
def before_server(
    graph: Graph, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    with (
        served("he", graph, folder) as cluster,
        gateway_before(cluster, "he", folder, ["--model", f"ports={graph.hash}"]) as started,
    ):
        yield started


def given(samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "picture": rng.normal(4, 2, (samples, 2, 6, 6)).astype(np.float32),
        "row": rng.normal(0, 2, (samples, 10)).astype(np.float32),
        "mask": rng.integers(0, 2, (samples, 3)).astype(bool),
        "words": rng.integers(0, 20, (samples, 2)),
    }


def post(http: str, document: Any) -> tuple[int, Any]:
    """As curl would."""
    connection = HTTPConnection(*http.split(":"), timeout=ample(30))
    connection.request("POST", "/v2/models/ports/infer", json.dumps(document))
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def document_of(arrays: dict[str, np.ndarray]) -> Any:
    return {
        "inputs": [
            {"name": name, "datatype": DATATYPES[name], "shape": array.shape,
             "data": array.tolist()}
            for name, array in arrays.items()
        ]
    }  # fmt: skip


def test_plain_requests_from_several_callers(graph: Graph, before_server: GatewayProcess) -> None:
    sizes = [1, 2, 3, 1, 5, 1, 1, 4]

    def ask(seed: int) -> tuple[int, Any]:
        return post(before_server.http, document_of(given(sizes[seed], seed)))

    with ThreadPoolExecutor(len(sizes)) as pool:
        answers = list(pool.map(ask, range(len(sizes))))
    for seed, (status, answer) in enumerate(answers):
        assert status == 200, answer
        assert (answer["model_name"], answer["model_version"]) == ("ports", graph.hash)
        found = {
            each["name"]: np.float32(each["data"]).reshape(each["shape"])
            for each in answer["outputs"]
        }
        want = reference.run(graph, given(sizes[seed], seed))
        assert list(found) == list(want)
        for name, value in want.items():
            assert np.array_equal(found[name], value), name


def test_the_same_over_grpc_and_a_bad_request_between(
    graph: Graph, before_server: GatewayProcess
) -> None:
    arrays = given(2)
    request = pb.ModelInferRequest(model_name="ports")
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=DATATYPES[name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    status, answer = post(before_server.http, document_of(arrays | {"words": arrays["row"]}))
    assert (status, "'words'" in answer["error"]) == (400, True)
    with grpc.insecure_channel(before_server.listen) as channel:
        stub = GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, timeout=ample(20))
    want = reference.run(graph, arrays)
    for about, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        assert raw == want[about.name].astype("<f4").tobytes()


def test_it_ends_when_it_is_told_and_logs_no_value(before_server: GatewayProcess) -> None:
    marked = given(1)
    marked["row"][0, 0] = 1234.567
    assert post(before_server.http, document_of(marked))[0] == 200
    broken = document_of(marked)
    broken["inputs"][1]["shape"] = [1, 11]
    assert post(before_server.http, broken)[0] == 400
    before_server.process.send_signal(signal.SIGTERM)
    assert before_server.process.wait(ample(20)) == 0
    lines = [json.loads(line) for line in before_server.log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["listening", "listening", "stopped"]
    assert "1234" not in before_server.log.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "0.0.0.0:8001"], "expected an address of loopback, or a certificate"),
        ([], "listen, http_listen: got neither"),
        (["--listen", "127.0.0.1:1", "--model", "a=b"], "--model: got 'b'"),
        (["--listen", "127.0.0.1:1", "--model", "a", "--model", "a"], "--model: got 'a'"),
        (["--listen", "127.0.0.1:1", "--listen-cert", "c.pem"], "--listen-cert and --listen-key"),
        (["--listen", "127.0.0.1:1", "--target", "b:2"], "--target for he: got 2"),
        (["--listen", "127.0.0.1:1", "--batch", "0"], "--batch"),
        (["--listen", "127.0.0.1:1", "--token-file", "absent"], "absent"),
    ],
)
def test_what_it_cannot_be_told(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_all(tmp_path)
    command = ["gateway", "--engine", "he", "--target", "a:1", "--tls", str(tmp_path)]
    assert main([*command, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.heavy
@pytest.mark.skipif(not OTHERS.exists(), reason="their clients are not here: make oip")
@pytest.mark.parametrize("engine", ["mpc", "he", "onehost"])
def test_clients_of_others(engine: str, graph: Graph, tmp_path: Path) -> None:
    arrays = given(3, seed=9)
    np.savez(tmp_path / "given.npz", **arrays)
    want = reference.run(graph, arrays)
    options = ["--model", f"ports={graph.hash}", "--timeout", str(ample(30))]
    with (
        served(engine, graph, tmp_path) as cluster,
        gateway_before(cluster, engine, tmp_path, options) as started,
    ):
        said = {
            name: asked(name, started, tmp_path, want) for name in ("triton.py", "kserve_asks.py")
        }
        assert started.process.poll() is None
    inputs = [{"name": p.name, "datatype": DATATYPES[p.name], "shape": [-1, *p.asked]}
              for p in graph.input_ports]  # fmt: skip
    for way in ("grpc", "http"):
        about = said["triton.py"][way]
        assert [about["live"], about["ready"], about["model_ready"]] == [True] * 3
        assert about["versions"] == [graph.hash]
        assert [each | {"shape": list(map(int, each["shape"]))} for each in about["inputs"]] == (
            inputs
        )
        codes = {
            "grpc": ["NOT_FOUND", "INVALID_ARGUMENT", "NOT_FOUND", "INVALID_ARGUMENT"],
            "http": ["404", "400", "404", "400"],
        }
        found = [status.removeprefix("StatusCode.") for status, _ in about["errors"]]
        assert found == codes[way]
        assert "'picture'" in about["errors"][1][1]
    assert said["kserve_asks.py"]["grpc"] == said["kserve_asks.py"]["rest"] == [True] * 3
    assert said["kserve_asks.py"]["grpc_error"][0] == "NOT_FOUND"
    assert "404" in said["kserve_asks.py"]["rest_error"]


def asked(
    script: str, started: GatewayProcess, folder: Path, want: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the script printed; what it saved equals ``want``."""
    found_at = folder / f"{script}.npz"
    command = [OTHERS, ROOT / "tests" / "oip_clients" / script, started.listen, started.http]
    done = subprocess.run(
        [*command, "ports", folder / "given.npz", found_at],
        capture_output=True, text=True, timeout=ample(120),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(found_at) as found:
        assert len(found.files) >= 4 * len(want)
        for name in found.files:
            assert found[name].dtype == np.float32
            assert np.array_equal(found[name], want[name.partition("/")[2]]), name
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said
