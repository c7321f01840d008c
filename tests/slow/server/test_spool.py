"""A dealer that crashes."""

import subprocess
import sys
from pathlib import Path

from unit.server.test_spool import files

from secure_quant_server.mpc.spool import Spool

CRASH = """
import os, sys
from secure_quant_server.mpc.spool import Spool
spool = Spool(sys.argv[1], 10_000)
for _ in range(3):
    spool.put(b"secret" * 10)
os._exit(9)
"""


def test_nothing_of_a_dealer_that_crashed_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("stays")
    assert subprocess.run([sys.executable, "-c", CRASH, tmp_path], check=False).returncode == 9
    left = files(tmp_path)
    assert len(left) == 3
    stolen = left[0].read_bytes()
    spool = Spool(tmp_path, 10_000)
    assert files(tmp_path) == []
    assert spool.take(0) is None
    # Even what somebody kept and put back is not ours: the key is gone.
    number = spool.put(b"secret" * 10)
    files(tmp_path)[0].write_bytes(stolen)
    assert spool.take(number) is None
    assert (tmp_path / "mine.txt").read_text() == "stays"
