"""One JSON object a line, whoever speaks, in a process of its own."""

import json
import subprocess
import sys

SPEAKERS = """
import asyncio, gc, logging, sys, threading, warnings
from secure_quant_server.common import logs
logs.setup()
logs.event("started", port=1)
logging.getLogger("grpc").error("line one %s\\nsecond line s3cret", "x")
warnings.warn("old thing")

async def main():
    logs.follow_tasks()
    async def fail():
        raise ValueError("s3cret")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)

asyncio.run(main())
thread = threading.Thread(target=lambda: [][0], name="t")
thread.start()
thread.join()
class Dies:
    def __del__(self):
        raise OSError("s3cret")
Dies()
try:
    raise KeyError("s3cret")
except KeyError:
    logging.getLogger("other").exception("it failed")
raise RuntimeError("s3cret")
"""


def test_whatever_speaks_says_one_object_a_line() -> None:
    ran = subprocess.run([sys.executable, "-c", SPEAKERS], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "s3cret" not in ran.stderr
    said = [json.loads(line) for line in ran.stderr.splitlines()]
    assert said[0]["event"] == "started"
    assert said[1]["says"] == "line one x"
    assert "old thing" in said[2]["says"]
    errors = [each["error"] for each in said if "error" in each]
    assert errors == [
        "ValueError", "ZeroDivisionError", "IndexError", "OSError", "KeyError", "RuntimeError"
    ]  # fmt: skip


def test_a_library_that_speaks_of_every_call_does_not_fill_the_log() -> None:
    script = (
        "import logging\nfrom secure_quant_server.common import logs\nlogs.setup()\n"
        "for i in range(500):\n"
        "    logging.getLogger('grpc').error(f'raised by servicer method [/a/{i}]')\n"
        "logging.getLogger('grpc').error('something else')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    said = [json.loads(line)["says"] for line in ran.stderr.splitlines()]
    assert said[:2] == ["raised by servicer method [/a/0]", "raised by servicer method [/a/1]"]
    assert said[-1] == "something else"
    assert len(said) == 11
