"""What was freed: kept where large blocks are used again, given back after a burst; and what a
process does not load."""

import subprocess
import sys
from pathlib import Path

import pytest
from unit.mpc.protocol import graphs

from secure_quant.mpc.protocol.bundle import split
from secure_quant.mpc.protocol.plan import plan

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


def faults(script: str, how: str) -> int:
    run = subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_blocks_used_again_cost_no_page_faults() -> None:
    assert 10 * faults(PROBE, "kept") < faults(PROBE, "default")


THREAD = """
import resource, sys, threading
from secure_quant_server.common.memory import keep_freed_memory, one_heap
keep_freed_memory()
if sys.argv[1] == "one":
    assert one_heap()
def clears():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(20):
        blocks = [bytearray(24 * 2**20) for _ in range(3)]
        del blocks
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
thread = threading.Thread(target=clears)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_threads_of_one_heap_use_its_memory_again() -> None:
    assert 3 * faults(THREAD, "one") < faults(THREAD, "own")


BURST = """
from pathlib import Path
from secure_quant_server.common.memory import give_back_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
blocks = [b"x" * (100_000 + n) for n in range(2000)]
last = bytes(100_000)  # above all of them: the heap cannot shrink by itself
full = resident()
del blocks
before = resident()
given = give_back_freed_memory()
print(full, before, resident(), given)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux's /proc")
def test_a_burst_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", BURST], capture_output=True, check=True, text=True)
    full, before, after, given = run.stdout.split()
    if given == "False":
        pytest.skip("the C library has no malloc_trim, or had nothing to give")
    assert int(full) - int(after) > 150_000_000
    assert int(before) >= int(after)


FRONT = """
import sys
import secure_quant_server.mpc.party
from secure_quant.mpc.protocol.bundle import load_party
from pathlib import Path
program = load_party(Path(sys.argv[1]).read_bytes(), weights=False)
print(program.plan.cost().rounds, *({"numba", "torch", "crypten"} & set(sys.modules)))
"""


def test_a_front_knows_a_plan_without_compiled_loops(tmp_path: Path) -> None:
    bundle = tmp_path / "party0.sqb"
    bundle.write_bytes(split(graphs.lenet())["party0"])
    run = subprocess.run(
        [sys.executable, "-c", FRONT, bundle], capture_output=True, check=True, text=True
    )
    assert run.stdout.split() == [str(plan(graphs.lenet()).cost().rounds)]
