"""Joins requests of several clients into one inference while every lane is busy.

A request never waits for company when a lane is idle. Otherwise it waits until a lane is, until the
batch is full, or for ``wait_s``, whichever comes first. What one client does wrong costs the others
a short while: a joined inference waits little for missing shares, and when it is refused its
requests go on alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from secure_quant.errors import DeadlineExceeded, ProtocolError, SecureQuantError
from secure_quant.mpc.runtime.jobs import Answer, Job
from secure_quant_server.mpc.lanes import LaneHandle, Lanes

__all__ = ["Batcher"]

JOINED_WAIT_S = 0.25
"""Longest wait for the shares of a joined inference at the other party."""


class _Entry:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class Batcher:
    """samples: most of one inference. wait_s: longest wait for company; 0 joins nothing."""

    def __init__(self, lanes: Lanes, *, samples: int, wait_s: float) -> None:
        self._lanes, self._samples, self._wait_s = lanes, samples, wait_s
        self._waiting: dict[str, deque[_Entry]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Calls that no lane has yet."""
        return sum(len(each) for each in list(self._waiting.values()))

    async def infer(self, job: Job) -> Answer:
        """A job of one call. Raises PeerUnavailable, InternalError and what the lane says."""
        lane = self._lanes.choose(job.ids[0])
        if self._wait_s == 0 or lane.load == 0:
            return await self._on(lane, job)
        entry = _Entry(job)
        waiting = self._waiting.setdefault(job.model, deque())
        waiting.append(entry)
        if sum(each.job.samples for each in waiting) >= self._samples:
            self._flush(job.model)
        elif job.model not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[job.model] = loop.call_later(self._wait_s, self._flush, job.model)
        return await entry.answer

    async def _on(self, lane: LaneHandle, job: Job) -> Answer:
        try:
            return await lane.infer(job)
        finally:
            self._idle(lane)

    def _idle(self, lane: LaneHandle) -> None:
        """A lane may have become idle: whoever waits longest goes on."""
        if lane.load == 0 and self._waiting:
            self._flush(next(iter(self._waiting)))

    def _flush(self, model: str) -> None:
        timer = self._timers.pop(model, None)
        if timer is not None:
            timer.cancel()
        # Those whose client has gone meanwhile are left out.
        waiting = [e for e in self._waiting.pop(model, ()) if not e.answer.done()]
        while waiting:
            taken, samples = 0, 0
            for entry in waiting:
                samples += entry.job.samples
                if taken and samples > self._samples:
                    break
                taken += 1
            task = asyncio.create_task(self._together(waiting[:taken]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            del waiting[:taken]

    async def _together(self, entries: Sequence[_Entry]) -> None:
        jobs = [entry.job for entry in entries]
        wait_s = min(job.wait_s for job in jobs)
        job = jobs[0] if len(jobs) == 1 else Job.join(jobs, min(JOINED_WAIT_S, wait_s))
        try:
            answer = await self._on(self._lanes.choose(job.ids[0]), job)
        except (DeadlineExceeded, ProtocolError) as error:
            # Refused before it ran, so nothing of the material was used.
            if len(entries) == 1:
                _settle(entries[0], error)
            else:
                await asyncio.gather(*(self._together([entry]) for entry in entries))
        except SecureQuantError as error:
            for entry in entries:
                _settle(entry, error)
        else:
            for entry, part in zip(entries, answer.split(), strict=True):
                if not entry.answer.done():
                    entry.answer.set_result(part)


def _settle(entry: _Entry, error: SecureQuantError) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(error)
