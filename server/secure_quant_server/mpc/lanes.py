"""A front's view of its lanes: worker processes that it starts, feeds and starts again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from secure_quant.errors import InternalError, PeerUnavailable, SecureQuantError
from secure_quant.mpc.runtime.jobs import Answer, Ids, Job
from secure_quant.transport import Credentials
from secure_quant_server.common import Workers
from secure_quant_server.common.messages import error_from_bytes, error_to_bytes
from secure_quant_server.common.workers import Keeper, Template, Worker
from secure_quant_server.mpc.config import LaneConfig, to_certificates
from secure_quant_server.mpc.messages import (
    Certificates,
    Claimed,
    Drop,
    Failed,
    Ready,
    Retract,
    Share,
    Step,
    Watch,
)

__all__ = ["LaneHandle", "Lanes"]


class Shares(Protocol):
    """Party 1's board: see there."""

    async def fetch(self, job: Job) -> bytes: ...

    def claim(self, keys: Sequence[str]) -> None: ...

    def settle(self, key: str, answer: Answer | SecureQuantError) -> None: ...


class LaneHandle(Keeper):
    """One lane: its worker, the jobs it has."""

    lost_event = "lane lost"

    def __init__(
        self, template: Template, config: LaneConfig, board: Shares, changed: Callable[[], None]
    ) -> None:
        super().__init__(template, config.place.lane)
        self._config, self._board, self._changed = config, board, changed
        self._jobs: dict[Ids, asyncio.Future[Answer]] = {}
        # Party 1: shares that were pushed and not taken; shares that this lane has taken.
        self._pushed: set[str] = set()
        self._claimed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.ready = False
        self.on_step: Callable[[Ids, int], None] | None = None

    @property
    def load(self) -> int:
        """Calls that wait or run."""
        return sum(map(len, list(self._jobs)))  # also looked at by a thread that is scraped

    @property
    def pushed(self) -> int:
        """Party 1: shares that were pushed to the worker, and not taken or retracted since."""
        return len(self._pushed)

    async def infer(self, job: Job) -> Answer:
        """Party 0: raises PeerUnavailable, InternalError and what the lane says."""
        if self.worker is None:
            raise PeerUnavailable("this lane starts again")
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._jobs[job.ids] = waiting
        try:
            self.worker.send(job)
            return await waiting
        finally:
            self._jobs.pop(job.ids, None)

    def push(self, job: Job) -> None:
        """Party 1: hand one call's share over before the worker asks for it."""
        if self.worker is not None:
            with suppress(InternalError):  # a worker that starts again will ask
                self.worker.send(job)
                self._pushed.update(job.ids)

    def certify(self, certificates: Certificates) -> None:
        """What the worker's next connections use; one that starts reads them itself."""
        if self.worker is not None:
            with suppress(InternalError):
                self.worker.send(certificates)

    def retract(self, key: str) -> None:
        """Party 1: let the worker forget a share that was pushed to it, unless it took it: the
        client has gone, or another lane has served it."""
        if key in self._pushed and self.worker is not None:
            self._pushed.discard(key)
            with suppress(InternalError):
                self.worker.send(Retract(key))

    def drop(self, key: str) -> None:
        """The client of a request has gone; the worker knows whether that request is here."""
        if self.worker is not None:
            with suppress(InternalError):
                self.worker.send(Drop(key))

    def watch(self, key: str, on: bool) -> None:
        """Somebody wants to hear of that request; the worker knows whether it is here."""
        if self.worker is not None:
            with suppress(InternalError):
                self.worker.send(Watch(key, on))

    def about(self) -> dict[str, object]:
        """See ``Keeper``."""
        return {"lane": self._config.place.lane}

    async def attend(self, worker: Worker) -> None:
        """See ``Keeper``."""
        await worker.send_whole(self._config.to_setup())  # reads the certificates: may be refused
        while True:
            self.take(await worker.receive())

    def take(self, message: Any) -> None:
        """One message of the worker."""
        if isinstance(message, Answer):
            self._finish(message)
        elif isinstance(message, Failed):
            self._finish_failed(message.ids, error_from_bytes(message.body))
        elif isinstance(message, Job) and self.worker is not None:
            task = asyncio.create_task(self._bring(self.worker, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(message, Claimed):
            self._board.claim(message.ids)
            self._claimed.update(message.ids)
            self._pushed.difference_update(message.ids)
        elif isinstance(message, Step) and self.on_step is not None:
            self.on_step(message.ids, message.rounds)
        elif isinstance(message, Ready):
            self.ready = message.ready
            self.served |= self.ready
            self._changed()

    async def _bring(self, worker: Worker, job: Job) -> None:
        """Party 1: the share that the worker asks for, or why it will not come."""
        answer: Share | Failed
        try:
            answer = Share(job.ids, await self._board.fetch(job))
            self._claimed.update(job.ids)
        except SecureQuantError as error:
            answer = Failed(job.ids, error_to_bytes(error))
        with suppress(InternalError):  # a worker that is gone needs no answer
            worker.send(answer)

    def _finish(self, answer: Answer) -> None:
        if self._config.place.party == 1:
            for part in answer.split():
                self._settle(part.ids[0], part)
        elif (waiting := self._jobs.get(answer.ids)) is not None and not waiting.done():
            waiting.set_result(answer)  # else its client has gone

    def _finish_failed(self, ids: Ids, error: SecureQuantError) -> None:
        if self._config.place.party == 1:
            for key in ids:
                self._settle(key, error)
        elif (waiting := self._jobs.get(ids)) is not None and not waiting.done():
            waiting.set_exception(error)

    def _settle(self, key: str, answer: Answer | SecureQuantError) -> None:
        self._claimed.discard(key)
        self._pushed.discard(key)  # an answer that came soon is all that tells of the share
        self._board.settle(key, answer)

    def lost(self, error: BaseException | None) -> None:
        """See ``Keeper``."""
        self.ready = False
        self._changed()
        ended = InternalError("the lane's process ended", hint="send the request again")
        for waiting in self._jobs.values():
            if not waiting.done():
                waiting.set_exception(ended)
        for key in self._claimed:
            self._board.settle(key, ended)
        self._claimed.clear()
        self._pushed.clear()
        for task in self._tasks:
            task.cancel()


class Lanes:
    """All lanes of a party; those that are ready share the work."""

    def __init__(
        self,
        config: LaneConfig,
        count: int,
        *,
        board: Shares,
        changed: Callable[[bool], None],
        template: Template,
    ) -> None:
        """``board``: of party 1. ``template``: of the workers."""
        self._changed = changed
        self._template = template
        self._handles = [
            LaneHandle(self._template, _of_lane(config, lane), board, self._look)
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
        await self._template.stop()

    def certify(self, found: Credentials) -> None:
        """Certificates that were replaced."""
        for handle in self._handles:
            handle.certify(to_certificates(found))

    def drop(self, key: str) -> None:
        """The client of a request, by its id in hexadecimal, has gone."""
        for handle in self._handles:
            handle.drop(key)

    def watch(self, key: str, on: bool) -> None:
        """Somebody watches a request, or does no longer."""
        for handle in self._handles:
            handle.watch(key, on)

    def on_step(self, told: Callable[[Ids, int], None]) -> None:
        """``told`` hears of the rounds of jobs that are watched."""
        for handle in self._handles:
            handle.on_step = told

    def workers(self, waiting: Callable[[], int]) -> Workers:
        """What to tell of the processes."""
        return Workers(
            configured=len(self._handles),
            ready=lambda: len(self.ready),
            pids=lambda: [worker.pid for each in self._handles if (worker := each.worker)],
            restarts=lambda: sum(each.restarts for each in self._handles),
            waiting=lambda: waiting() + sum(each.load for each in self._handles),
        )

    @property
    def ready(self) -> Sequence[LaneHandle]:
        """The lanes that could take a request now."""
        return [handle for handle in self._handles if handle.ready]

    def choose(self, key: str) -> LaneHandle:
        """Among the lanes with the fewest calls the one that the request id (in hexadecimal) points
        at, so that party 1 can guess where its share will be asked for. Raises PeerUnavailable if
        no lane is ready."""
        ready = self.ready
        if not ready:
            raise PeerUnavailable(
                "no lane is connected to the other party and the dealer",
                hint="lanes heal by themselves; try again soon",
            )
        pointed = ready[int(key[:2], 16) % len(ready)]
        least = min(handle.load for handle in ready)
        if pointed.load == least:
            return pointed
        return next(handle for handle in ready if handle.load == least)

    def _look(self) -> None:
        self._changed(bool(self.ready))


def _of_lane(config: LaneConfig, lane: int) -> LaneConfig:
    """Lane n's link is n ports above the first."""
    host, _, port = config.place.link.rpartition(":")
    place = replace(config.place, lane=lane, link=f"{host}:{int(port) + lane}")
    return replace(config, place=place)
