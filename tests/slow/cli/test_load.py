"""What is seen of other processes."""

import os
import subprocess
import sys
import time

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
