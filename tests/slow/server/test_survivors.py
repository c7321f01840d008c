"""Nothing outlives a front that is killed, whatever state it is in and whoever holds its pipes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import ample
from slow.server.test_workers import MODULE, ask, kind, template
from slow.server.worker_entries import Ask

TESTS = Path(__file__).parents[2]

FRONT = """
import asyncio, json, os, signal, sys, time
from slow.server.test_workers import ask, kind
from slow.server.worker_entries import Ask
from secure_quant_server.common.workers import Template

async def main(case):
    template = Template(kind())
    template.launch()
    idle, hangs, stopped = [await template.start(number) for number in range(3)]
    for worker in (idle, hangs, stopped):
        await ask(worker, "process")
    hangs.send(Ask("sleep", 600.0))
    os.kill(stopped.pid, signal.SIGSTOP)
    pids = [template._process.pid, idle.pid, hangs.pid, stopped.pid]
    if case == "stopped template":
        os.kill(pids[0], signal.SIGSTOP)
    holder = 0
    if case == "forked front":
        holder = os.fork()  # has a copy of every pipe's end
        if not holder:
            time.sleep(600)
    print(json.dumps([pids, holder]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main(sys.argv[1]))
"""

IMPORTING = """
import os, sys, time
from slow.server.test_workers import kind
from secure_quant_server.common.workers import Template
template = Template(kind(("slow_to_import",)))
template.launch()
print(template._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Process ids to be ended whatever happens."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def survivors(pids: list[int], limit: float = 30.0) -> list[int]:
    """Of these, those that still run after so long."""
    end = time.monotonic() + ample(limit)
    while any(map(runs, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return [pid for pid in pids if runs(pid)]


def started(ended: list[int], *command: str, path: Path = TESTS) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(path)])}
    front = subprocess.Popen(
        [sys.executable, "-c", *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    ended.append(front.pid)
    return front


@pytest.mark.parametrize("case", ["as it is", "stopped template", "forked front"])
def test_a_killed_front_takes_template_and_workers_along(case: str, ended: list[int]) -> None:
    """One worker is idle, one hangs, one is stopped."""
    with started(ended, FRONT, case) as front:
        pids, holder = json_line(front)
        ended += [*pids, *([holder] if holder else [])]
        assert all(map(runs, pids))
        front.kill()
        front.wait()
        assert survivors(pids) == []
        if holder:
            assert runs(holder)  # it held them to the end
            os.kill(holder, signal.SIGKILL)


def json_line(front: subprocess.Popen[str]) -> tuple[list[int], int]:
    assert front.stdout is not None
    pids, holder = json.loads(front.stdout.readline())
    return pids, holder


@pytest.mark.parametrize("handles", [True, False])
def test_a_worker_that_hangs_is_ended_though_its_template_has_gone(
    handles: bool, ended: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that does not is still of use."""
    (tmp_path / "sandbox.py").write_text("import os\n" + ("" if handles else "del os.pidfd_open\n"))
    path = os.pathsep.join([str(TESTS), str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", path)

    async def work() -> None:
        async with template(kind((MODULE, "sandbox"))) as made:
            idle, hangs = await made.start(0), await made.start(1)
            for worker in (idle, hangs):
                ended.append(worker.pid)
                await ask(worker, "process")
            hangs.send(Ask("sleep", 600.0))
            made._process.kill()
            while not (idle.ended.done() and hangs.ended.done()):  # nobody tells any more
                await asyncio.sleep(0.01)
            assert idle.alive
            assert await ask(idle, "process")
            assert hangs.alive
            await hangs.end()
            assert not hangs.alive
            assert not runs(hangs.pid)
            await idle.end(10.0)
            assert not runs(idle.pid)

    asyncio.run(asyncio.wait_for(work(), ample(60)))


TWICE = """
import asyncio, json, os, signal
from slow.server.test_workers import Place, ask, kind
from slow.server.worker_entries import Ask
from secure_quant_server.common import workers
from secure_quant_server.common.workers import Template

workers.UNHEARD_S = 4.0

async def main():
    template = Template(kind())
    beats = await template.start(0)
    await ask(beats, "process")
    watched = asyncio.ensure_future(beats.watch())
    hearing = asyncio.ensure_future(beats.receive())
    await asyncio.sleep(6.0)
    assert beats.alive and not watched.done(), "each beat winds it up again"
    hangs = await template.start(1)
    await ask(hangs, "process")
    hangs.send(Ask("spin", 600.0))
    os.kill(template._process.pid, signal.SIGKILL)
    while not hangs.ended.done():
        await asyncio.sleep(0.01)
    print(json.dumps([[beats.pid, hangs.pid], 0]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_worker_that_hangs_ends_though_template_and_front_have_gone(ended: list[int]) -> None:
    """First the template, then the front, whose beats keep another's timer from running out."""
    with started(ended, TWICE) as front:
        pids, _ = json_line(front)
        ended += pids
        front.kill()
        front.wait()
        assert survivors(pids) == []


def test_a_template_that_still_imports_goes_too(tmp_path: Path, ended: list[int]) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "time.sleep(600)\n"
    )
    with started(ended, IMPORTING, path=tmp_path) as front:
        assert front.stdout is not None
        ended.append(template := int(front.stdout.readline()))
        end = time.monotonic() + ample(60)
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < end, "the template does not start"
            time.sleep(0.02)
        front.kill()
        front.wait()
        assert survivors([template]) == []


def test_a_search_of_random_nets_takes_its_processes_along(ended: list[int]) -> None:
    """``tools/fuzz_nets.py``, killed in the middle."""
    tool = TESTS.parent / "tools" / "fuzz_nets.py"
    command = [sys.executable, str(tool), "--seed", "1", "--count", "2000", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as search:
        ended.append(search.pid)
        children, end = [], time.monotonic() + ample(120)
        while not any(loads_torch(pid) for pid in children):  # past its initializer's start
            assert time.monotonic() < end, "the search does not start"
            time.sleep(0.1)
            children = children_of(search.pid)
        ended += children
        search.kill()
        search.wait()
        assert survivors(children) == []


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found


def loads_torch(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
