"""A front's view of its lanes: worker processes that it starts, feeds and starts again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from secure_quant.errors import InternalError, PeerUnavailable, SecureQuantError
from secure_quant.transport import Credentials
from secure_quant_server.common.messages import error_from_bytes, error_to_bytes
from secure_quant_server.common.workers import Keeper, Template, Worker
from secure_quant_server.mpc.config import LaneConfig, to_certificates
from secure_quant_server.mpc.messages import (
    Answered,
    Certificates,
    Claimed,
    Early,
    Failed,
    Infer,
    Missing,
    Ready,
    Retract,
    Share,
    Want,
)

__all__ = ["LaneHandle", "Lanes", "Outcome", "Request"]


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


class Shares(Protocol):
    """Party 1's board: see there."""

    async def fetch(
        self,
        keys: Sequence[str],
        model: str,
        batches: Sequence[int],
        callers: Sequence[str],
        wait_s: float,
    ) -> bytes: ...

    def claim(self, keys: Sequence[str]) -> None: ...

    def settle(self, key: str, outcome: Outcome | SecureQuantError) -> None: ...


class LaneHandle(Keeper):
    """One lane: its worker, the jobs it has."""

    lost_event = "lane lost"

    def __init__(
        self, template: Template, config: LaneConfig, board: Shares, changed: Callable[[], None]
    ) -> None:
        super().__init__(template, config.options.lane)
        self._config, self._board, self._changed = config, board, changed
        self._jobs: dict[str, asyncio.Future[Outcome]] = {}
        # Party 1: shares that were pushed and not taken; shares that this lane has taken.
        self._pushed: set[str] = set()
        self._claimed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.ready = False

    @property
    def load(self) -> int:
        """Jobs that wait or run."""
        return len(self._jobs)

    @property
    def pushed(self) -> int:
        """Party 1: shares that were pushed to the worker, and not taken or retracted since."""
        return len(self._pushed)

    async def infer(self, requests: Sequence[Request], wait_s: float) -> list[Outcome]:
        """Party 0: requests of one model as one inference; an outcome each.

        Raises PeerUnavailable, InternalError and what the lane says.
        """
        if self.worker is None:
            raise PeerUnavailable("this lane starts again")
        keys = tuple(request.request_id.hex() for request in requests)
        loop = asyncio.get_running_loop()
        outcomes = {key: loop.create_future() for key in keys}
        self._jobs.update(outcomes)
        job = Infer(
            keys, requests[0].model, tuple(request.batch for request in requests),
            tuple(request.caller for request in requests), wait_s,
            b"".join(request.share for request in requests),
        )  # fmt: skip
        try:
            self.worker.send(job)
            return list(await asyncio.gather(*outcomes.values()))
        finally:
            for key in keys:
                self._jobs.pop(key, None)

    def push(self, key: str, model: str, batch: int, caller: str, share: bytes) -> None:
        """Party 1: hand a share over before the worker asks for it."""
        if self.worker is not None:
            with suppress(InternalError):  # a worker that starts again will ask
                self.worker.send(Early(key, model, batch, caller, share))
                self._pushed.add(key)

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

    def about(self) -> dict[str, object]:
        """See ``Keeper``."""
        return {"lane": self._config.options.lane}

    async def attend(self, worker: Worker) -> None:
        """See ``Keeper``."""
        worker.send(self._config.to_setup())  # reads the certificates: may be refused
        while True:
            self.take(await worker.receive())

    def take(self, message: Any) -> None:
        """One message of the worker."""
        if isinstance(message, Answered):
            whole = Outcome(
                message.body, message.rounds, message.bytes_sent, message.offline_bytes,
                message.microseconds,
            )  # fmt: skip
            parts = whole.split(message.batches)
            for key, part in zip(message.ids, parts, strict=True):
                self._finish(key, part)
        elif isinstance(message, Failed):
            for key in message.ids:
                self._finish(key, error_from_bytes(message.body))
        elif isinstance(message, Want) and self.worker is not None:
            task = asyncio.create_task(self._bring(self.worker, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(message, Claimed):
            self._board.claim(message.ids)
            self._claimed.update(message.ids)
            self._pushed.difference_update(message.ids)
        elif isinstance(message, Ready):
            self.ready = message.ready
            self.served |= self.ready
            self._changed()

    async def _bring(self, worker: Worker, want: Want) -> None:
        """Party 1: the share that the worker asks for, or why it will not come."""
        answer: Share | Missing
        try:
            answer = Share(want.ids, await self._board.fetch(
                want.ids, want.model, want.batches, want.callers, want.wait_s
            ))  # fmt: skip
            self._claimed.update(want.ids)
        except SecureQuantError as error:
            answer = Missing(want.ids, error_to_bytes(error))
        with suppress(InternalError):  # a worker that is gone needs no answer
            worker.send(answer)

    def _finish(self, key: str, outcome: Outcome | SecureQuantError) -> None:
        if self._config.party == 1:
            self._claimed.discard(key)
            self._board.settle(key, outcome)
            return
        waiting = self._jobs.get(key)
        if waiting is None or waiting.done():
            return  # its client has gone
        if isinstance(outcome, SecureQuantError):
            waiting.set_exception(outcome)
        else:
            waiting.set_result(outcome)

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
