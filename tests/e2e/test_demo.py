"""The demonstration as a newcomer runs it: real processes, mutual TLS, every integer compared."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import ample

IMAGES = 6


def run(*arguments: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "secure_quant_cli", *arguments]
    environment = dict(os.environ, TMPDIR=str(folder))
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder,
        timeout=ample(300), **options,
    )  # fmt: skip


def processes_that_mention(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    done = run("demo", "--images", str(IMAGES), "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return dict(json.loads(done.stdout))


def test_it_is_bit_exact(report: dict[str, Any]) -> None:
    assert report["bit_exact"] is True
    engines = report["engines"]
    assert engines["mpc"]["mismatches"] == engines["he"]["mismatches"] == 0
    # Ten logits of each image and of the warm-up under secret sharing, every layer under HE.
    assert engines["mpc"]["compared"] % 10 == 0
    assert engines["mpc"]["compared"] >= 10 * IMAGES
    assert engines["he"]["compared"] > 1000 * IMAGES


def test_accuracies_agree(report: dict[str, Any]) -> None:
    engines = report["engines"]
    assert engines["mpc"]["accuracy"] == engines["he"]["accuracy"] == engines["int8"]["accuracy"]
    assert engines["float"]["accuracy_all"] > 0.95
    assert abs(engines["float"]["accuracy_all"] - engines["int8"]["accuracy_all"]) <= 0.005


def test_sizes_and_traffic(report: dict[str, Any]) -> None:
    assert report["int8_bytes"] <= 0.27 * report["float_bytes"]
    mpc, he = (report["engines"][name]["bytes_sent"] for name in ("mpc", "he"))
    assert mpc["party 0"]["online"] == mpc["party 1"]["online"] <= 150_000
    assert mpc["dealer"]["online"] == 0 < mpc["dealer"]["offline"]
    assert he["client"]["online"] + he["server"]["online"] <= 600_000


def test_nothing_is_left_running(report: dict[str, Any], folder: Path) -> None:
    assert processes_that_mention(str(folder)) == []
    assert list(folder.glob("secure-quant-*")) == []


def test_second_run_prints_tables_from_the_kept_network(
    report: dict[str, Any], folder: Path
) -> None:
    done = run("demo", "--images", "1", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "training" not in done.stderr
    assert done.stdout.splitlines()[-1] == "bit-exact: yes"
    for word in ("float32", "secret sharing", "homomorphic encryption", "dealer", "accuracy"):
        assert word in done.stdout
