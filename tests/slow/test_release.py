"""`make release`: the same bytes twice, checksums that hold, a bill of what runs with us."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from patience import ample

from secure_quant import __version__

ROOT = Path(__file__).resolve().parents[2]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_archive_says_nothing_of_its_builder(tmp_path: Path) -> None:
    made = []
    for name, owner, when in (("a", "alice", 1), ("b", "bob", 2_000_000_000)):
        path = tmp_path / f"{name}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for file in ("x/two", "x/one") if name == "a" else ("x/one", "x/two"):
                info = tarfile.TarInfo(file)
                info.uname, info.mtime, info.mode = owner, when, 0o600 if name == "a" else 0o664
                tar.addfile(info)
        tool()._normalize(path, 1_700_000_000)
        made.append(path.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert tar.getnames() == ["x/one", "x/two"]
        assert {each.mtime for each in tar} == {1_700_000_000}


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_two_builds_are_equal(tmp_path: Path) -> None:
    missing = [name for name in ("build", "cyclonedx_py") if importlib.util.find_spec(name) is None]
    if missing or not (ROOT / ".git").exists():
        pytest.skip(f"needs a clone, and of the extra dev: {missing}")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, zone, umask in zip(folders, ("UTC", "Asia/Tokyo"), (0o022, 0o077), strict=True):
        command = [sys.executable, ROOT / "tools" / "release.py", "--out", folder]
        done = subprocess.run(
            command, env={**os.environ, "TZ": zone}, umask=umask, capture_output=True, text=True,
            timeout=ample(300),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (sorted(path.name for path in folder.iterdir()) for folder in folders)
    assert one == two
    for name in one:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    sums = dict(
        reversed(line.split("  ")) for line in (folders[0] / "SHA256SUMS").read_text().splitlines()
    )
    assert set(sums) == set(one) - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((folders[0] / name).read_bytes()).hexdigest() == digest
    holds_what_it_should(folders[0])


def holds_what_it_should(folder: Path) -> None:
    stem = f"secure_quant-{__version__}"
    bill = json.loads((folder / f"{stem}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {each["name"] for each in bill["components"]}
    assert {"crypten", "cryptography", "grpcio", "numpy", "tenseal", "torch"} <= listed
    assert listed.isdisjoint({"mypy", "pytest", "ruff", "zensical"})
    assert all(each["version"] for each in bill["components"])
    wheel = zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl")
    assert "secure_quant/v1/secure_inference.proto" in wheel.namelist()
    with tarfile.open(folder / f"{stem}.tar.gz") as sdist:
        assert f"{stem}/pyproject.toml" in sdist.getnames()
