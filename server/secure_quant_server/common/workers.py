"""Worker processes as a front sees them: started from a warm template, watched, replaced.

Lanes of a party and evaluation processes of the HE server are both kept by a ``Keeper``: whatever
ends a worker, or keeps one from starting, another is started. A worker that does not answer and
does not compute is ended, within ``STUCK_S`` of the moment at which it stopped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secure_quant.errors import InternalError, SecureQuantError
from secure_quant_server.common import logs
from secure_quant_server.common.messages import MessagePipe, Ping, Pong, Vocabulary

__all__ = ["START_S", "STUCK_S", "Keeper", "Template", "Worker", "WorkerKind"]

RESTART_S = (0.02, 15.0)
"""Shortest and longest pause before another worker is started."""
BEAT_S = 0.4
STUCK_S = 2.8
"""A worker that stops is seen to after so long: a beat, the silence that is borne, a beat."""
SILENCE_S = STUCK_S - 2 * BEAT_S
BUSY_S = 120.0
"""Longest silence of a worker that computes; its caller's own limit is usually shorter."""
UNHEARD_S = 150.0
"""A worker ends by itself after so long without a beat: more than ``BUSY_S``, after which its front
ends it, so that only one whose front has gone gets there."""
BUSY_SHARE = 0.05
"""Of the silence, in CPU time: with less, a worker hangs, unless it waits for a core or a disk."""
BORN = 19
"""Where ``_stat`` has the time of a process's start: a process id may be used again."""
START_S = 120.0
FORK_S = 5.0
STOP_S = 3.0

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Processes are the parallelism: one thread of arithmetic each, unless the operator says otherwise
(workers are then started cold)."""


@dataclass(frozen=True, kw_only=True)
class WorkerKind:
    """What a template makes.

    name        of the processes.
    entry       ``module:function``; called with the worker's end of a socket pair.
    modules     what the template imports ahead.
    answers     what a worker may say.
    most        longest body of an answer, bytes.
    memory      limit of a worker's address space in bytes; None for none.
    environment variables besides those of the front, which go first.
    """

    name: str
    entry: str
    modules: Sequence[str]
    answers: Vocabulary
    most: int = 2**30
    memory: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Started:
    """What a template says of a process. ended: its exit status, None if nobody knows. handle: a
    descriptor that stands for the process, where the system has such."""

    pid: int
    warm: bool
    ended: asyncio.Future[int | None]
    handle: int | None


class Worker:
    """One process and the front's end of its pipe."""

    def __init__(self, started: _Started, pipe: MessagePipe) -> None:
        self.pid, self.warm, self.ended = started.pid, started.warm, started.ended
        self._handle, self._pipe = started.handle, pipe
        self._born = _stat(started.pid)[BORN]
        self._heard, self._spoke = asyncio.get_running_loop().time(), False

    @property
    def alive(self) -> bool:
        """False as soon as the process has ended, whether or not anybody has seen to it."""
        if self._handle is None:  # ``ended`` is also done once nobody would tell
            now = _stat(self.pid)
            return now[0] not in ("Z", "X") and now[BORN] == self._born
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return not poll.poll(0)

    def send(self, message: Any) -> None:
        """Queue a message. Raises InternalError once the process is gone."""
        self._pipe.send(message)

    async def send_whole(self, message: Any) -> None:
        """See ``MessagePipe.send_whole``."""
        await self._pipe.send_whole(message)

    async def receive(self) -> Any:
        """Its next message but Pong. Raises InternalError, MalformedMessage."""
        while True:
            message = await self._pipe.receive()
            self._heard, self._spoke = asyncio.get_running_loop().time(), True
            if not isinstance(message, Pong):
                return message

    async def watch(self) -> None:
        """Until the process neither answers nor computes: then raises InternalError. One that has
        not said anything yet may still wait for the disk."""
        loop = asyncio.get_running_loop()
        heard, busy = self._heard, cpu_seconds(self.pid)
        while True:
            self._pipe.send(Ping())
            asleep = loop.time()
            await asyncio.sleep(BEAT_S)
            now = loop.time()
            if now - asleep > 2 * BEAT_S:
                # This process was the one that did not run: what it was told is yet to be read.
                self._heard = now
            if self._heard != heard:  # its time is looked up here, a message costs no look
                heard, busy = self._heard, cpu_seconds(self.pid)
            silence, computed = now - heard, cpu_seconds(self.pid) - busy
            idle = computed < BUSY_SHARE * silence and _stat(self.pid)[0] not in ("R", "D")
            hangs = self._spoke and idle
            if silence > (SILENCE_S if hangs else BUSY_S):
                raise InternalError("the worker hangs", got=f"{silence:.1f} s of silence")

    async def end(self, patience_s: float = 0.0) -> int | None:
        """Let it end by itself for ``patience_s``, then kill it; its exit status if it is known."""
        self._pipe.close()
        if patience_s:
            await self._gone(patience_s)
        if self.alive:
            with suppress(ProcessLookupError):
                if self._handle is not None:
                    signal.pidfd_send_signal(self._handle, signal.SIGKILL)
                else:
                    os.kill(self.pid, signal.SIGKILL)
        await self._gone(STOP_S)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        return self.ended.result() if self.ended.done() else None

    async def _gone(self, limit_s: float) -> None:
        """Until it has ended, and its status is known if anybody tells it; at most so long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        await asyncio.wait([self.ended], timeout=limit_s)
        while self.alive and loop.time() < end:  # its template has gone before
            await asyncio.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; 0 if it has gone."""
    user, system = _stat(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """State, and what follows it in proc(5), ``stat``; X for a process that has gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ["X", *["0"] * BORN]
    return stat.rpartition(")")[2].split()  # a name may hold spaces


class Template:
    """The template process of one kind, started when it is first needed and again if it ended."""

    def __init__(self, kind: WorkerKind) -> None:
        self.kind = kind
        self._process: subprocess.Popen[bytes] | None = None
        self._launched: socket.socket | None = None  # nobody reads it yet
        self._control: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._replies: deque[asyncio.Future[_Started | None]] = deque()
        self._ends: dict[int, asyncio.Future[int | None]] = {}

    def launch(self) -> None:
        """Start the process ahead of need; also outside an event loop. Raises OSError."""
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        # -P: modules come from the installation, never from the directory one happens to be in.
        command = [sys.executable, "-P", "-m", "secure_quant_server.common.template"]
        command += [str(theirs.fileno()), self.kind.entry, *self.kind.modules]
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603  our own module
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                    env={**ONE_THREAD, **self.kind.environment, **os.environ},
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self._launched = ours

    async def start(self, number: int) -> Worker:
        """A new worker. Raises InternalError, OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                options = {
                    "name": f"sq-{self.kind.name}-{number}", "memory": self.kind.memory,
                    "log_level": logs.level(), "unheard_s": UNHEARD_S,
                }  # fmt: skip
                async with self._turn:
                    started = await self._asked(options, theirs.fileno())
            pipe = await MessagePipe.over(ours, self.kind.answers, self.kind.most)
        except BaseException:
            ours.close()
            raise
        return Worker(started, pipe)

    async def stop(self) -> None:
        """End the template. Its workers end with their pipes."""
        process = self._process
        if self._launched is not None:
            self._launched.close()
            self._launched = None
        self._lost()
        if process is not None:
            for _ in range(int(STOP_S / 0.01)):
                if process.poll() is not None:
                    return
                await asyncio.sleep(0.01)
            process.kill()
            process.wait()

    async def _asked(self, options: dict[str, Any], descriptor: int) -> _Started:
        if self._control is None:
            await self._open()
        control = self._control
        if control is not None:
            socket.send_fds(control, [json.dumps(options).encode()], [descriptor])
            started = await self._reply(FORK_S)
            if started is not None:
                return started
        raise InternalError("the template of workers ended at its start")

    async def _open(self) -> None:
        if self._launched is None:
            self.launch()
        control, self._launched = self._launched, None
        if control is not None:
            self._control = control
            asyncio.get_running_loop().add_reader(control, self._read, control)
            await self._reply(START_S)

    async def _reply(self, limit_s: float) -> _Started | None:
        wait: asyncio.Future[_Started | None] = asyncio.get_running_loop().create_future()
        self._replies.append(wait)
        try:
            async with asyncio.timeout(limit_s):
                return await wait
        except TimeoutError as error:
            self._lost(kill=True)
            raise InternalError("the template of workers hangs", got=f"{limit_s:g} s") from error
        except asyncio.CancelledError:
            self._lost(kill=True)  # its reply would be taken for the next one's
            raise

    def _read(self, control: socket.socket) -> None:
        try:
            data, handles, _, _ = socket.recv_fds(control, 2**16, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, handles = b"", []
        if not data:
            self._lost()
            return
        told, started = json.loads(data), None
        if "ended" in told:
            self._ends.pop(told["ended"]).set_result(told["status"])
            return
        if "started" in told:
            ended = asyncio.get_running_loop().create_future()
            self._ends[told["started"]] = ended
            handle = handles[0] if handles else None
            started = _Started(told["started"], told["warm"], ended, handle)
        self._replies.popleft().set_result(started)

    def _lost(self, *, kill: bool = False) -> None:
        """The template is gone, or as good as. Its workers live on, but nobody says how they end:
        only that their pipes do."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._process is not None and kill:
            self._process.kill()
            self._process.wait()
        self._process = None
        while self._replies:
            reply = self._replies.popleft()
            if not reply.done():
                reply.set_exception(InternalError("the template of workers ended"))
        for ended in self._ends.values():
            ended.set_result(None)
        self._ends.clear()


class Keeper(ABC):
    """One place that always has a worker: starts it, attends to it, starts another.

    worker: the one that is there now. served: set by ``attend`` once the worker is of use; a worker
    that never was is followed by a longer pause. restarts: workers that were lost so far.
    """

    lost_event = "worker ended"

    def __init__(self, template: Template, number: int) -> None:
        self._template, self._number = template, number
        self.worker: Worker | None = None
        self.served, self.restarts = False, 0

    @abstractmethod
    async def attend(self, worker: Worker) -> None:
        """Set the worker up and read what it says, until it is lost: then raise."""

    @abstractmethod
    def lost(self, error: BaseException | None) -> None:
        """The worker is gone, or did not start, for that reason: fail what it had."""

    def about(self) -> dict[str, object]:
        """What the log says besides."""
        return {"worker": self._number}

    async def run(self) -> None:
        """Until cancelled."""
        pause, longest = RESTART_S
        while True:
            self.served, error = False, None
            try:
                self.worker = await self._template.start(self._number)
                await self._attended(self.worker)
            except Exception as caught:  # noqa: BLE001  no reason is good enough to stay away
                error = caught
            finally:
                status = await self._ended(error)
            pause = RESTART_S[0] if self.served else min(2 * pause, longest)
            self.restarts += 1
            self._log(error, status, pause)
            await asyncio.sleep(pause)

    async def _attended(self, worker: Worker) -> None:
        tasks = [asyncio.create_task(self.attend(worker)), asyncio.create_task(worker.watch())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ended(self, error: Exception | None) -> int | None:
        """``error`` is None when this place is given up: then a worker may end by itself."""
        worker, self.worker = self.worker, None
        self.lost(error)
        if worker is None:
            return None
        return await worker.end(STOP_S if error is None else 0.0)

    def _log(self, error: Exception | None, status: int | None, pause: float) -> None:
        about = self.about() | {"status": status, "again_in_s": pause}
        if error is None or isinstance(error, SecureQuantError | OSError):
            reason = getattr(error, "strerror", None) or str(error)
            logs.event(self.lost_event, level=logging.WARNING, reason=reason, **about)
        else:
            logs.failure(self.lost_event, error, **about)
