"""Worker processes: forked warm and clean, watched, ended when they hang, replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from patience import ample
from slow.server.worker_entries import ANSWERS, Ask, Told

from secure_quant.errors import InternalError
from secure_quant_server.common import workers as workers_module
from secure_quant_server.common.workers import (
    BEAT_S,
    STUCK_S,
    Keeper,
    Template,
    Worker,
    WorkerKind,
)

MODULE = "slow.server.worker_entries"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def kind(modules: Sequence[str] = (MODULE,), memory: int | None = None) -> WorkerKind:
    return WorkerKind(
        name="test", entry=f"{MODULE}:serve", modules=modules, answers=ANSWERS, memory=memory
    )


@asynccontextmanager
async def template(made: WorkerKind | None = None) -> AsyncIterator[Template]:
    started = Template(made or kind())
    try:
        yield started
    finally:
        await started.stop()


async def ask(worker: Worker, what: str, seconds: float = 0.0) -> tuple[str, ...]:
    worker.send(Ask(what, seconds))
    told: Told = await worker.receive()
    return told.facts


def run(work):
    return asyncio.run(asyncio.wait_for(work, ample(60)))


def test_a_worker_is_warm_alone_and_hardened() -> None:
    async def work() -> None:
        async with template(kind(memory=2**40)) as made:
            workers = [await made.start(number) for number in range(3)]
            for number, worker in enumerate(workers):
                assert worker.warm
                assert worker.alive
                core, room, threads, comm, sockets, safe = await ask(worker, "process")
                assert (core, room, threads) == ("0", str(2**40), "1")
                assert comm == f"sq-test-{number}"
                assert sockets == "1"  # its own pipe; neither the template's nor a sibling's
                assert safe == "True"
            statuses = [await worker.end(5.0) for worker in workers]
            assert statuses == [0, 0, 0]

    run(work())


def test_streams_of_two_workers_differ() -> None:
    """Of random, numpy, torch and CrypTen, whose generators a fork clones."""

    async def work() -> list[tuple[str, ...]]:
        modules = (MODULE, "numpy", "secure_quant.mpc.crypten.compat")
        async with template(kind(modules)) as made:
            workers = [await made.start(number) for number in range(3)]
            found = [await ask(worker, "generators") for worker in workers]
            await asyncio.gather(*(worker.end(5.0) for worker in workers))
        return found

    found = run(work())
    assert all(len(each) >= 3 for each in found)
    for stream in zip(*found, strict=True):
        assert len(set(stream)) == 3, stream


def test_a_template_with_threads_starts_workers_cold(tmp_path, monkeypatch) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", path)

    async def work() -> None:
        async with template(kind((MODULE, "threaded"))) as made:
            worker = await made.start(4)
            assert not worker.warm
            assert worker.alive
            core, _, threads, comm, sockets, safe = await ask(worker, "process")
            assert (core, threads, comm) == ("0", "1", "sq-test-4")
            assert (sockets, safe) == ("1", "True")
            assert await worker.end(5.0) == 0

    run(work())


def test_a_template_may_start_before_there_is_a_loop() -> None:
    used, unused = Template(kind()), Template(kind())
    for made in (used, unused):
        made.launch()

    async def work() -> None:
        worker = await used.start(0)
        assert await ask(worker, "process")
        assert await worker.end(5.0) == 0
        processes = [made._process for made in (used, unused)]
        await asyncio.gather(used.stop(), unused.stop())
        assert [process.returncode for process in processes] == [0, 0]

    run(work())


def test_signals_to_the_group_are_the_fronts_to_act_on() -> None:
    async def work() -> None:
        async with template() as made:
            worker = await made.start(0)
            await ask(worker, "process")
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(worker.pid, number)
            assert await ask(worker, "generators")
            await worker.end(5.0)

    run(work())


def test_a_dead_worker_is_known_at_once() -> None:
    async def work() -> None:
        async with template() as made:
            worker = await made.start(0)
            await ask(worker, "process")
            os.kill(worker.pid, signal.SIGKILL)
            while worker.alive:
                time.sleep(0.001)  # no turn of the loop is needed
            assert await worker.end() == -signal.SIGKILL
            with pytest.raises(InternalError):
                await worker.receive()

    run(work())


def test_where_processes_have_no_handles_their_ends_are_told_all_the_same(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "sandbox.py").write_text(
        "import errno, os\n"
        "def refuse(pid):\n    raise OSError(errno.ENOSYS, 'no such call')\n"
        "os.pidfd_open = refuse\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", path)

    async def work() -> None:
        async with template(kind((MODULE, "sandbox"))) as made:
            first, second = await made.start(0), await made.start(1)
            await ask(first, "process")
            assert first.alive
            os.kill(first.pid, signal.SIGKILL)
            assert await asyncio.wait_for(first.ended, ample(10)) == -signal.SIGKILL
            assert not first.alive
            await first.end()
            assert await second.end() == -signal.SIGKILL

    run(work())


def test_what_a_worker_raises_is_logged_by_its_type(capfd) -> None:
    async def work() -> int | None:
        async with template() as made:
            worker = await made.start(0)
            worker.send(Ask("fail"))
            with pytest.raises(InternalError):
                await worker.receive()
            return await worker.end(5.0)

    assert run(work()) == 1
    said = capfd.readouterr().err
    assert '"error": "KeyError"' in said
    assert "secret" not in said
    assert "Traceback" not in said


def test_a_template_that_dies_or_hangs_is_replaced_and_its_workers_live_on(monkeypatch) -> None:
    async def work() -> None:
        async with template() as made:
            first = await made.start(0)
            await ask(first, "process")
            made._process.kill()
            await asyncio.sleep(0.2)
            second = await made.start(1)
            assert await ask(first, "generators") != await ask(second, "generators")
            os.kill(made._process.pid, signal.SIGSTOP)
            with monkeypatch.context() as soon:
                soon.setattr(workers_module, "FORK_S", 0.5)
                with pytest.raises(InternalError, match="hangs"):
                    await made.start(2)
            third = await made.start(2)
            for worker in (first, second, third):
                await ask(worker, "process")
                await worker.end(5.0)

    run(work())


class Place(Keeper):
    """Keeps what it is told; ``ready`` is set while a worker answers."""

    def __init__(self, made: Template) -> None:
        super().__init__(made, 0)
        self.pids: list[int] = []
        self.ready, self.losses = asyncio.Event(), 0

    async def attend(self, worker: Worker) -> None:
        await ask(worker, "process")
        self.pids.append(worker.pid)
        self.served = True
        self.ready.set()
        await worker.receive()

    def lost(self, error) -> None:
        self.ready.clear()
        self.losses += 1


async def until(condition, limit: float = 30.0) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + ample(limit), "waited in vain"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


@asynccontextmanager
async def kept() -> AsyncIterator[Place]:
    async with template() as made:
        place = Place(made)
        running = asyncio.ensure_future(place.run())
        try:
            await asyncio.wait_for(place.ready.wait(), ample(30))
            yield place
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_worker_is_replaced(number: signal.Signals) -> None:
    async def work() -> None:
        async with kept() as place:
            await asyncio.sleep(2 * BEAT_S)
            begun = time.monotonic()
            os.kill(place.pids[0], number)
            await until(lambda: not place.ready.is_set())
            seen = time.monotonic() - begun
            await until(place.ready.is_set)
            assert place.pids[0] != place.pids[1]
            assert place.losses == 1
            if number is signal.SIGSTOP:
                assert seen > BEAT_S  # not at the first missed beat
                assert seen < ample(2 * STUCK_S)

    run(work())


def test_a_place_given_up_in_the_moment_it_gets_its_worker_ends(monkeypatch) -> None:
    async def work() -> None:
        read = Template._read
        async with template() as made:

            def given_up(self: Template, control: socket.socket) -> None:
                read(self, control)
                place.cancel()

            monkeypatch.setattr(Template, "_read", given_up)
            place = asyncio.ensure_future(Place(made).run())
            done, _ = await asyncio.wait([place], timeout=ample(30))
            assert done
            assert place.cancelled()

    run(work())


def test_a_worker_that_computes_is_left_alone_and_one_that_sleeps_is_not() -> None:
    async def work() -> None:
        async with kept() as place:
            place.worker.send(Ask("spin", STUCK_S + 2.0))
            await asyncio.sleep(STUCK_S + 1.0)
            assert place.losses == 0
        async with kept() as place:
            place.worker.send(Ask("sleep", 60.0))
            await until(lambda: place.losses == 1)

    run(work())


def test_a_front_that_did_not_run_blames_nobody() -> None:
    async def work() -> None:
        async with kept() as place:
            await asyncio.sleep(2 * BEAT_S)
            time.sleep(STUCK_S + 1.0)  # the front's own loop hangs
            await asyncio.sleep(3 * BEAT_S)
            assert place.losses == 0

    run(work())
