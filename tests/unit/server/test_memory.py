"""The allocator keeps what was freed: large blocks used again cost no page faults."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys
from secure_quant_server.common import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    bytes(bytearray(40 * 2**18))
before = faults()
for _ in range(50):
    blocks = [bytearray(2**20) for _ in range(8)]
    del blocks
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_blocks_used_again_cost_no_page_faults() -> None:
    def faults(how: str) -> int:
        run = subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, check=True)
        return int(run.stdout)

    assert 10 * faults("kept") < faults("default")
