"""A front's view of its lanes: worker processes that it starts, feeds and starts again."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from secure_quant.errors import InternalError, PeerUnavailable, SecureQuantError
from secure_quant_server.common import logs
from secure_quant_server.mpc.config import LaneConfig
from secure_quant_server.mpc.pipe import Pipe, error_from_fields, error_to_fields

__all__ = ["LaneHandle", "Lanes", "Outcome", "Request"]

RESTART_S = (0.1, 15.0)
"""Shortest and longest pause before a lost lane's worker is started again."""

ENVIRONMENT = {
    # Lanes are the parallelism: one thread of arithmetic each, unless the operator says otherwise.
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
    ),
    # Material and activations are megabytes that come and go with every inference: keep the pages
    # instead of asking the kernel for zeroed ones each time.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
}
STOP_S = 3.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """An output share, uint64 little-endian, and what it cost this party."""

    share: bytes
    rounds: int
    bytes_sent: int
    offline_bytes: int
    microseconds: int

    def split(self, batches: Sequence[int]) -> list[Outcome]:
        """The part of each request, in order; rounds and time are those of the whole."""
        row = len(self.share) // sum(batches)
        parts, start = [], 0
        for batch in batches:
            stop = start + row * batch
            parts.append(replace(
                self, share=self.share[start:stop],
                bytes_sent=self.bytes_sent * batch // sum(batches),
                offline_bytes=self.offline_bytes * batch // sum(batches),
            ))  # fmt: skip
            start = stop
        return parts


@dataclass(frozen=True, slots=True)
class Request:
    """One client's call at party 0. share: a byte an element, of ``batch`` samples. wait_s: how
    long the other party may wait for the client's other share. caller: whose call it is."""

    request_id: bytes
    model: str
    batch: int
    caller: str
    share: bytes
    wait_s: float


Fetch = Callable[[str, str, list[int], list[str], float], Awaitable[bytes]]
Settle = Callable[[str, Outcome | SecureQuantError], None]


class LaneHandle:
    """One lane: its process, its pipe, the jobs it has."""

    def __init__(
        self,
        config: LaneConfig,
        fetch: Fetch,
        claim: Callable[[str], None],
        settle: Settle,
        changed: Callable[[], None],
    ) -> None:
        self._config, self._changed = config, changed
        self._fetch, self._claim, self._settle = fetch, claim, settle
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None
        self._jobs: dict[str, asyncio.Future[Outcome]] = {}
        # Party 1: shares that were pushed and not taken; shares that this lane has taken.
        self._pushed: set[str] = set()
        self._claimed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.ready = self._was_ready = False

    @property
    def load(self) -> int:
        """Jobs that wait or run."""
        return len(self._jobs)

    @property
    def pushed(self) -> int:
        """Party 1: shares that were pushed to the worker, and not taken or retracted since."""
        return len(self._pushed)

    async def run(self) -> None:
        """Keep a worker alive until cancelled. Whatever ends it or keeps it from starting, another
        is started, after growing pauses while none becomes ready."""
        pause, longest = RESTART_S
        try:
            while True:
                self._was_ready = False
                try:
                    await self._start()
                    await self._listen()
                except Exception as error:  # noqa: BLE001  no reason is good enough to stay away
                    self._log_loss(error)
                self._lost()
                pause = RESTART_S[0] if self._was_ready else min(2 * pause, longest)
                await asyncio.sleep(pause)
        finally:
            await self._stop()

    def _log_loss(self, error: Exception) -> None:
        lane = self._config.options.lane
        if isinstance(error, SecureQuantError):
            logs.event("lane lost", level=logging.WARNING, lane=lane, reason=str(error))
        elif isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            logs.event("lane lost", level=logging.WARNING, lane=lane, reason=reason)
        else:
            logs.failure("lane lost", error, lane=lane)

    async def infer(self, requests: Sequence[Request], wait_s: float) -> list[Outcome]:
        """Party 0: requests of one model as one inference; an outcome each.

        Raises PeerUnavailable, InternalError and what the lane says.
        """
        if self._pipe is None:
            raise PeerUnavailable("this lane starts again")
        keys = [request.request_id.hex() for request in requests]
        loop = asyncio.get_running_loop()
        outcomes = {key: loop.create_future() for key in keys}
        self._jobs.update(outcomes)
        fields = {
            "kind": "infer", "ids": ",".join(keys), "model": requests[0].model,
            "batches": [request.batch for request in requests], "wait_s": wait_s,
            "callers": [request.caller for request in requests],
        }  # fmt: skip
        try:
            self._pipe.send(fields, b"".join(request.share for request in requests))
            return list(await asyncio.gather(*outcomes.values()))
        finally:
            for key in keys:
                self._jobs.pop(key, None)

    def push(self, key: str, model: str, batch: int, caller: str, share: bytes) -> None:
        """Party 1: hand a share over before the worker asks for it."""
        if self._pipe is not None:
            fields = {
                "kind": "early", "ids": key, "model": model, "batches": [batch], "caller": caller
            }  # fmt: skip
            with suppress(InternalError):  # a worker that starts again will ask
                self._pipe.send(fields, share)
                self._pushed.add(key)

    def retract(self, key: str) -> None:
        """Party 1: let the worker forget a share that was pushed to it, unless it took it: the
        client has gone, or another lane has served it."""
        if key in self._pushed and self._pipe is not None:
            self._pushed.discard(key)
            with suppress(InternalError):
                self._pipe.send({"kind": "retract", "ids": key})

    async def _start(self) -> None:
        fields, body = self._config.to_frame()  # reads the certificates: may be refused
        ours, theirs = socket.socketpair()
        environment = ENVIRONMENT | dict(os.environ)
        command = [sys.executable, "-m", "secure_quant_server.mpc.worker", str(theirs.fileno())]
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603  our own module
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
                )
        except BaseException:
            ours.close()
            raise
        self._pipe = await Pipe.over(ours)
        self._pipe.send(fields, body)

    async def _listen(self) -> None:
        pipe = self._pipe
        if pipe is None:
            raise InternalError("the worker was not started")
        while True:
            self.take(*await pipe.receive())

    def take(self, fields: dict[str, Any], body: bytes) -> None:
        """One frame of the worker."""
        kind = fields["kind"]
        if kind == "answer":
            figures = (fields[name] for name in ("rounds", "sent", "offline", "us"))
            parts = Outcome(body, *figures).split(fields["batches"])
            for key, part in zip(fields["ids"].split(","), parts, strict=True):
                self._finish(key, part)
        elif kind == "failed":
            for key in fields["ids"].split(","):
                self._finish(key, error_from_fields(fields))
        elif kind == "want" and self._pipe is not None:
            task = asyncio.create_task(self._bring(self._pipe, fields))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind == "claimed":
            self._claim(fields["ids"])
            self._claimed.update(fields["ids"].split(","))
            self._pushed.difference_update(fields["ids"].split(","))
        elif kind == "state":
            self.ready = bool(fields["ready"])
            self._was_ready |= self.ready
            self._changed()

    async def _bring(self, pipe: Pipe, fields: dict[str, Any]) -> None:
        """Party 1: the share that the worker asks for, or why it will not come."""
        answer: dict[str, Any] = {"kind": "share", "ids": fields["ids"]}
        body = b""
        try:
            body = await self._fetch(
                fields["ids"], fields["model"], fields["batches"], fields["callers"],
                fields["wait_s"],
            )  # fmt: skip
            self._claimed.update(fields["ids"].split(","))
        except SecureQuantError as error:
            answer |= error_to_fields(error)
        with suppress(InternalError):  # a worker that is gone needs no answer
            pipe.send(answer, body)

    def _finish(self, key: str, outcome: Outcome | SecureQuantError) -> None:
        if self._config.party == 1:
            self._claimed.discard(key)
            self._settle(key, outcome)
            return
        waiting = self._jobs.get(key)
        if waiting is None or waiting.done():
            return  # its client has gone
        if isinstance(outcome, SecureQuantError):
            waiting.set_exception(outcome)
        else:
            waiting.set_result(outcome)

    def _lost(self) -> None:
        self.ready = False
        self._changed()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        error = InternalError("the lane's process ended", hint="send the request again")
        for waiting in self._jobs.values():
            if not waiting.done():
                waiting.set_exception(error)
        for key in self._claimed:
            self._settle(key, error)
        self._claimed.clear()
        self._pushed.clear()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        for task in self._tasks:
            task.cancel()
        if self._process is not None:
            deadline = asyncio.get_running_loop().time() + STOP_S
            while self._process.poll() is None and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.02)
            self._process.kill()
            self._process.wait()


class Lanes:
    """All lanes of a party; those that are ready share the work."""

    def __init__(
        self,
        config: LaneConfig,
        count: int,
        *,
        fetch: Fetch,
        claim: Callable[[str], None],
        settle: Settle,
        changed: Callable[[bool], None],
    ) -> None:
        """``fetch``, ``claim``, ``settle``: party 1's board (see there)."""
        self._changed = changed
        self._handles = [
            LaneHandle(_of_lane(config, lane), fetch, claim, settle, self._look)
            for lane in range(count)
        ]
        self._runs: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start every worker process."""
        self._runs = [asyncio.create_task(handle.run()) for handle in self._handles]

    async def stop(self) -> None:
        """End every worker process."""
        for run in self._runs:
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)

    @property
    def ready(self) -> Sequence[LaneHandle]:
        """The lanes that could take a request now."""
        return [handle for handle in self._handles if handle.ready]

    def choose(self, request_id: bytes) -> LaneHandle:
        """Among the lanes with the fewest jobs the one that the id points at, so that party 1 can
        guess where its share will be asked for. Raises PeerUnavailable if no lane is ready."""
        ready = self.ready
        if not ready:
            raise PeerUnavailable(
                "no lane is connected to the other party and the dealer",
                hint="lanes heal by themselves; try again soon",
            )
        pointed = ready[request_id[0] % len(ready)]
        least = min(handle.load for handle in ready)
        if pointed.load == least:
            return pointed
        return next(handle for handle in ready if handle.load == least)

    def _look(self) -> None:
        self._changed(bool(self.ready))


def _of_lane(config: LaneConfig, lane: int) -> LaneConfig:
    """Lane n's link is n ports above the first."""
    host, _, port = config.link.rpartition(":")
    options = replace(config.options, lane=lane)
    return replace(config, link=f"{host}:{int(port) + lane}", options=options)
