"""Files of deploy/ against the programs that read them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secure_quant.engines import roles
from secure_quant_cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "systemd" / "secure-quant@.service"
MOST_EXPOSED = 2.0


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """An instance for a role, whose program is one that is there."""
    made = tmp_path / "secure-quant@party0.service"
    made.write_text(UNIT.read_text().replace("/opt/secure-quant/bin/secure-quant", "/bin/true"))
    return made


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    exposure = float(done.stdout.rpartition("service: ")[2].split()[0])
    assert exposure < MOST_EXPOSED, done.stdout


@pytest.mark.parametrize("role", [*roles()])
def test_its_command_is_ours(role: str) -> None:
    (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart="))
    words = line.partition("=")[2].replace("%i", role).split()
    assert words[0] == "/opt/secure-quant/bin/secure-quant"
    given = build_parser().parse_args(words[1:])
    assert given.role == role


def test_compose_follows_its_specification() -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    if not program.exists():
        pytest.skip("needs check-jsonschema, of the extra dev")
    command = [program, "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, ROOT / "deploy" / "docker-compose.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
