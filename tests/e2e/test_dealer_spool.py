"""`secure-quant serve dealer --spool`: a crash leaves nothing that anyone uses."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from e2e.mpc_cluster import small_net
from patience import ample

from secure_quant.mpc.protocol.bundle import split
from secure_quant.transport.certs import make_all


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    make_all(tmp_path / "certs")
    (tmp_path / "dealer.sqb").write_bytes(split(small_net())["dealer"])
    return [
        sys.executable, "-m", "secure_quant_cli", "serve", "dealer",
        "--bundle", str(tmp_path / "dealer.sqb"), "--listen", "127.0.0.1:0",
        "--tls", str(tmp_path / "certs"), "--stock-bytes", "1000000",
        "--spool", str(tmp_path / "spool"), "--spool-bytes", "3000000",
    ]  # fmt: skip


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def heads(folder: Path) -> set[bytes]:
    """The first bytes of every item there; one may be deleted while we look."""
    found = set()
    for path in folder.glob("*.item"):
        with suppress(FileNotFoundError):
            found.add(path.read_bytes()[:64])
    return found


def full(folder: Path) -> set[bytes]:
    """What lies there once the dealer has filled it."""
    end, before = time.monotonic() + ample(30), -1
    while time.monotonic() < end:
        size = 0
        for path in folder.glob("*.item"):
            with suppress(FileNotFoundError):
                size += path.stat().st_size
        assert size <= 3_000_000
        if size == before and size > 2_000_000:
            return heads(folder)
        before = size
        time.sleep(0.3)
    raise TimeoutError("the dealer does not fill its spool")


def test_what_a_crash_leaves_is_deleted(
    command: list[str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    def start() -> subprocess.Popen[str]:
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    first, folder = start(), tmp_path / "spool"
    left = full(folder)
    second = start()
    _, said = second.communicate(timeout=ample(30))
    assert second.returncode != 0
    assert "no other dealer" in said
    first.kill()
    first.wait()
    assert heads(folder) == left
    third = start()
    end = time.monotonic() + ample(30)
    while heads(folder) & left:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not full(folder) & left
    third.send_signal(signal.SIGTERM)
    third.wait(timeout=ample(20))
    assert list(folder.glob("*.item")) == []
