"""A machine with the core dependencies alone: the client's commands work, others say what lacks."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import ample

from secure_quant.transport.certs import make_all

BLOCKED = """
import sys

class Blocked:
    names = {"torch", "torchao", "crypten", "numba", "tenseal", "sklearn", "onnx", "onnxruntime",
             "grpc_reflection", "grpc_status", "prometheus_client"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Blocked())
from secure_quant_cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("client")
    make_all(home / "certs")
    np.savez(home / "x.npz", x=np.zeros((1, 8), np.float32))
    shutil.copy(Path(__file__).parents[2] / "vectors" / "tiny_model.sq", home / "tiny.sq")
    return home


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=home, timeout=ample(60))


@pytest.mark.parametrize(
    ("engine", "targets"), [("mpc", "127.0.0.1:1,127.0.0.1:1"), ("he", "127.0.0.1:1")]
)
def test_infer_gets_as_far_as_the_network(home: Path, engine: str, targets: str) -> None:
    command = ("infer", "--engine", engine, "--target", targets, "--input", "x.npz")
    done = run(home, *command, "--tls", "certs", "--timeout", "5")
    assert done.returncode == 1
    assert "failed to connect" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_health_asks(home: Path) -> None:
    done = run(
        home,
        *[
            "health",
            "--role",
            "he",
            "--target",
            "127.0.0.1:1",
            "--tls",
            "certs",
            "--caller",
            "client",
        ],
    )
    assert done.returncode == 1
    assert "not serving" in done.stdout


def test_certs_are_made(home: Path) -> None:
    assert run(home, "certs", "--out", "more").returncode == 0
    # A plan of secret sharing is numbers; what runs it is the parties'.
    assert run(home, "split", "tiny.sq", "--engine", "mpc", "--out", "shares").returncode == 0


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("bench --model mlp --engine reference", "quantize"),
        ("demo", "quantize"),
        ("serve he --bundle b.sqb --listen 127.0.0.1:0 --tls certs", "server"),
        ("split tiny.sq --engine onehost --out out", "onehost"),
        ("split tiny.sq --engine he --out out", "he"),
    ],
)
def test_what_lacks_is_named(home: Path, line: str, extra: str) -> None:
    done = run(home, *line.split())
    assert done.returncode == 2
    assert f"install the extra '{extra}' of secure-quant" in done.stderr
    assert "Traceback" not in done.stderr
