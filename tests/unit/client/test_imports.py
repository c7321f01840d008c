"""The client's door is light: checked in fresh processes."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "crypten", "numba"}


def modules_after(code: str) -> set[str]:
    listing = "import sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_importing_the_client_loads_no_engine() -> None:
    loaded = modules_after("import secure_quant_client")
    assert not loaded & (HEAVY | {"tenseal"})


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


def test_what_is_public() -> None:
    import secure_quant_client

    assert secure_quant_client.__all__ == sorted(secure_quant_client.__all__)
    for name in secure_quant_client.__all__:
        assert getattr(secure_quant_client, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        secure_quant_client.nothing  # noqa: B018
