"""What is seen of other processes."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from patience import ample

from secure_quant_cli.processes import cpu_seconds, descendants, peak_memory


def test_cpu_and_children_of_a_process() -> None:
    script = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as parent:
        deadline = time.monotonic() + ample(30)
        while not (children := descendants(parent.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(children) == 1
        assert cpu_seconds(children[0]) is not None
        parent.communicate(b"\n")
    assert descendants(parent.pid) == []
    assert cpu_seconds(parent.pid) is None
    assert peak_memory(parent.pid) is None
    before = cpu_seconds(os.getpid()) or 0.0
    spent = time.process_time()
    while time.process_time() - spent < 0.1:
        pass
    assert (cpu_seconds(os.getpid()) or 0.0) - before == pytest.approx(0.1, abs=0.05)


HOLDER = """
import mmap, os, sys
if len(sys.argv) > 1:
    own = bytes(range(256)) * 2**18
    with open(sys.argv[1], "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(mapped[::4096])
if sys.argv[2:] and not os.fork():
    sum(mapped[::4096])
    sys.stdin.read()
    sys.exit()
print("there", flush=True)
sys.stdin.read()
"""
"""64 MiB of its own and a file; perhaps a child that shares both."""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="a kernel without it")
def test_pages_that_others_map_count_whole_and_those_of_a_child_once(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(b"x" * 2**25)
    file, sizes = str(path), []
    with ExitStack() as stack:
        for told in ([], [file], [file], [file, "fork"]):
            command = [sys.executable, "-c", HOLDER, *told]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            sizes.append(peak_memory(process.pid) or 0)
    for size in sizes[1:]:
        assert size - sizes[0] == pytest.approx(2**26 + 2**25, rel=0.05)
