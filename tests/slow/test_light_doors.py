"""What is light stays light: checked in fresh processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from patience import ample

TESTS = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "crypten", "numba"}

LIGHT = """
import sys
import secure_quant_client
for name in secure_quant_client.__all__:
    getattr(secure_quant_client, name)
heavy = {"torch", "torchao", "crypten", "numba", "sklearn", "onnx"} & set(sys.modules)
rooms = ("secure_quant.mpc", "secure_quant.quantizer", "secure_quant_server", "secure_quant_cli")
ours = {name for name in sys.modules if f"{name}.".startswith(tuple(f"{room}." for room in rooms))}
sys.exit(f"imported {sorted(heavy | ours)}" if heavy | ours else 0)
"""

WITHOUT_HEAVY = """
import sys
from secure_quant_cli.main import build_parser
build_parser().format_help()
heavy = {"torch", "crypten", "numba", "tenseal", "grpc", "torchao", "sklearn"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""

REGISTRY = """
import sys
from secure_quant import engines
engines.roles()
heavy = {"torch", "crypten", "numba", "tenseal", "grpc"} & set(sys.modules)
ours = [name for name in sys.modules if name.startswith(("secure_quant_", "secure_quant.mpc"))]
sys.exit(f"imported {sorted(heavy)} {ours}" if heavy or ours else 0)
"""


def modules_after(code: str) -> set[str]:
    listing = "import sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"],
        capture_output=True, text=True, timeout=ample(60), check=True,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "script", [LIGHT, WITHOUT_HEAVY, REGISTRY], ids=["client", "parser", "registry"]
)
def test_nothing_heavy_is_imported(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("secure_quant.he.plan", {"tenseal", "torch"}),
        ("secure_quant_server.he.leveled, secure_quant_client.leveled.client",
         {"tenseal", "torch"}),
        ("secure_quant_client.he.ckks", HEAVY),
        ("secure_quant_client", {*HEAVY, "tenseal"}),
        ("secure_quant_server.mpc.kinds, secure_quant_server.options", HEAVY),
    ],
)  # fmt: skip
def test_a_module_loads_no_engine(modules: str, heavy: set[str]) -> None:
    assert not modules_after(f"import {modules}") & heavy


@pytest.mark.parametrize(
    "name",
    ["HeClient", "AsyncHeClient", "MpcClient", "AsyncMpcClient", "LeveledClient",
     "AsyncLeveledClient"],
)  # fmt: skip
def test_naming_a_client_class_loads_no_heavy_part(name: str) -> None:
    loaded = modules_after(f"from secure_quant_client import {name}")
    assert not loaded & (HEAVY | {"tenseal"})


def test_a_whole_encrypted_inference_loads_no_torch() -> None:
    loaded = modules_after(
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from unit.client.he.test_walk import local, net, inputs\n"
        "local(net(), inputs(net(), 1))"
    )
    assert "tenseal" in loaded
    assert not loaded & HEAVY
