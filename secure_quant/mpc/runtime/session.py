"""One session of a lane: a link to the peer's lane, a stream from the dealer, one-time material.

A session lives and dies whole. Whatever breaks (link, dealer, a malformed message, a protocol that
fails halfway), every inference in it fails, its material is destroyed, and the lane starts a new
one. Nothing is ever retried with the same material.

Order of inferences: party 0 offers a job at once; party 1 answers when it holds the client's share
and the material, which callers get in turn, and both run jobs in the order of these answers. An
offer whose share never comes waits on its own and holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import (
    InternalError,
    MalformedMessage,
    ModelNotFound,
    PeerUnavailable,
    SecureQuantError,
    ShapeMismatch,
)
from secure_quant.mpc.runtime.deals import DealerStream
from secure_quant.mpc.runtime.jobs import Answer, Ids, Job
from secure_quant.mpc.runtime.link import Meter, PartyLink
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.mpc.runtime.staging import (
    MATERIAL_WAIT_S,
    Staged,
    Staging,
    Streamed,
    make_stock,
)
from secure_quant.mpc.runtime.stock import Stock
from secure_quant.mpc.runtime.stops import Stop, Stopped, Stops, gone
from secure_quant.transport import Turns

if TYPE_CHECKING:
    from secure_quant.mpc.protocol.party import PartyProgram

__all__ = [
    "Desk",
    "LaneSession",
    "make_stock",
]

Octets = NDArray[np.uint8]
MAX_BATCH = 2**16
AHEAD = 4
"""Jobs that have material or wait for it, the one that runs included. Behind them callers take
turns, so that one who asks for much keeps the others waiting for these at most."""


class Desk(Protocol):
    """Where a lane of party 1 gets shares and hands in answers."""

    async def fetch(self, job: Job) -> bytes:
        """The clients' shares, samples x input size; waits for them ``job.wait_s``."""

    def deliver(self, answer: Answer) -> None:
        """The answer to a job that was fetched."""

    def fail(self, job: Job, error: SecureQuantError) -> None:
        """A job that was fetched and cannot be answered."""


Border = Callable[[NDArray[Any]], NDArray[Any]]
"""What input shares (uint8) and output shares (uint64) pass, unchanged."""


class LaneSession:
    """Both parties' code; ``party`` decides who offers. Use ``run`` until it raises."""

    def __init__(
        self,
        party: int,
        programs: Mapping[str, PartyProgram],
        link: PartyLink,
        dealer: DealerStream,
        stock: Stock,
        *,
        border: Border = lambda share: share,
        desk: Desk | None = None,
        options: LaneOptions | None = None,
        unforeseen: Callable[[Exception], None] | None = None,
        stops: bool = False,
    ) -> None:
        """unforeseen: told of an exception that no one foresaw and that declined one job; by
        default its type is logged. stops: the other party knows what it means that an inference
        under way is given up."""
        self._party, self._programs = party, programs
        self._unforeseen = unforeseen or _log_type
        self._link, self._dealer = link, dealer
        self._border, self._desk = border, desk
        self._jobs: dict[Ids, Job] = {}  # offered (party 0) or accepted (party 1)
        self._waiting: dict[Ids, asyncio.Future[Answer]] = {}  # party 0: whoever offered them
        self._queue: asyncio.Queue[tuple[Job, Staged | Streamed]] = asyncio.Queue()
        self._stops, self._may_stop = Stops(), stops
        self._running: Stop | None = None
        self._begun = 0  # rounds of the link before it
        self._turns = Turns(range(AHEAD))  # party 1, which fixes the order
        self._staging = Staging(party, programs, link, stock, options or LaneOptions())
        self._tasks: set[asyncio.Future[Any]] = set()
        self._rehearsals = 0
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready = asyncio.Event()
        link.on_begin = self._accepted if party == 0 else self._offered
        link.on_decline = self._declined

    @property
    def rounds(self) -> int:
        """Of the link, since the session began."""
        return self._link.rounds

    async def run(self) -> None:
        """Serve until something breaks; always ends by raising it."""
        pumps = [self._link.pump(), self._dealer.pump(), self._work()]
        if self._party == 0:
            pumps.append(self._rehearse())
        else:
            pumps += self._staging.pumps()
        tasks = [asyncio.ensure_future(pump) for pump in pumps]
        self._tasks.update(tasks)
        try:
            pending: set[asyncio.Future[None]] = {*tasks, self._broken}
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            self.ready.clear()
            self._broken.cancel()
            if not self._broken.cancelled():
                self._broken.exception()  # one reason is raised; of two, nobody need look at this
            everything = list(self._tasks)
            for each in everything:
                each.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            await self._staging.close()
            self._fail_all()

    def end(self, error: SecureQuantError) -> None:
        """Let ``run`` raise ``error``."""
        if not self._broken.done():
            self._broken.set_exception(error)

    async def infer(self, job: Job) -> Answer:
        """Party 0: offer a job and wait for its answer.

        Raises ModelNotFound, MalformedMessage, ShapeMismatch, what party 1 declined it with, and
        PeerUnavailable if the session ends before the answer.
        """
        self._shaped(job)
        if job.ids in self._jobs:
            raise MalformedMessage("request id", got="one that is being served")
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._jobs[job.ids], self._waiting[job.ids] = job, waiting
        self._stops.open(job.ids)
        try:
            await self._link.begin(job)
        except BaseException:
            self._forget(job.ids)
            raise
        return await waiting

    def drop(self, key: str) -> None:
        """The client of a request, by its id, waits no longer. A job for which nobody does ends
        before its next round, or does not begin."""
        stop = self._stops.left(key) if self._may_stop else None
        if stop is None or self._party == 1 or stop is self._running or stop.said:
            return  # whoever runs it, or would, looks
        stop.said = True
        self._spawn(self._link.decline(gone(), stop.ids))

    def progress(self) -> tuple[Ids, int] | None:
        """What runs now, and how many of its rounds were begun."""
        if self._running is None:
            return None
        return self._running.ids, self._link.rounds - self._begun

    async def _rehearse(self) -> None:
        """Run each model once on zeros: everything is compiled, cached and proven to work before
        the first client comes."""
        for model, program in self._programs.items():
            zeros = bytes(prod(program.graph.input.shape))
            await self.infer(Job(model, (), (1,), wait_s=MATERIAL_WAIT_S, share=zeros))
        self.ready.set()

    def _accepted(self, theirs: Job, first_item: int) -> None:
        """Party 0: the peer has share and material; the job's turn is now fixed."""
        job = self._jobs.get(theirs.ids)
        if job is None or (job.model, job.batches) != (theirs.model, theirs.batches):
            raise MalformedMessage("answer to an offer", got="one that was not made")
        if (stop := self._stops.of(job.ids)) is not None:
            stop.accepted = True
        self._queue.put_nowait((job, self._staging.claim(job.model, first_item, job.samples)))

    def _declined(self, ids: Ids, error: SecureQuantError) -> None:
        stop = self._stops.of(ids)
        if stop is None and self._party == 1:
            return  # turned down at that moment
        if stop is not None and (stop.accepted or self._party == 1):
            if stop.there:
                raise MalformedMessage("end of an inference", got="twice")
            stop.there = True
            if self._party == 0 or stop is self._running:
                self._link.mark()
            return
        waiting = self._forget(ids)
        if waiting is None:
            raise MalformedMessage("refusal of an offer", got="one that was not made")
        if not waiting.done():
            waiting.set_exception(error)

    def _offered(self, job: Job, _: int) -> None:
        """Party 1: look for the share and the material on a task of its own."""
        self._spawn(self._prepare(job))

    def _forget(self, ids: Ids) -> asyncio.Future[Answer] | None:
        """A job that is not under way any more; party 0: who waits for it."""
        self._jobs.pop(ids, None)
        self._stops.close(ids)
        return self._waiting.pop(ids, None)

    async def _prepare(self, job: Job) -> None:
        """Queue a job, or decline it: whatever one job meets with costs that job alone."""
        fetched, turn = False, None
        self._stops.open(job.ids)
        try:
            job = replace(job, share=await self._fetch(job))
            fetched = True
            self._shaped(job)
            turn = await self._turns.get(job.callers[0] if job.callers else "")
            staged = await self._staging.get(job.model, job.samples, job.wait_s)
        except Exception as error:
            self._stops.close(job.ids)
            if not job.ids:
                raise  # a rehearsal that fails is a session that cannot work
            if turn is not None:
                self._turns.put(turn)
            if not isinstance(error, SecureQuantError):
                self._unforeseen(error)
                error = InternalError("the other party's lane failed on this request")
            if fetched and self._desk is not None:
                self._desk.fail(job, error)
            await self._link.decline(error, job.ids)
            return
        self._jobs[job.ids] = job
        self._queue.put_nowait((job, staged))

    async def _fetch(self, job: Job) -> bytes:
        shape = self._program(job.model).graph.input.shape
        if not job.ids:
            return bytes(job.samples * prod(shape))
        if self._desk is None:
            raise PeerUnavailable("no client can be served here")
        if len(job.callers) != len(job.ids):
            raise MalformedMessage("callers", got=len(job.callers), expected="one a request")
        return await self._desk.fetch(job)

    async def _work(self) -> None:
        """Run accepted jobs one after the other."""
        while True:
            job, staged = await self._queue.get()
            self._staging.busy()
            stop = self._running = self._stops.of(job.ids) or Stop(job.ids)
            self._begun = self._link.rounds
            try:
                answer = await self._served(job, staged, stop)
            except Stopped:
                self._give_up(job)
            else:
                self._hand_in(job, answer)
            self._running = None
            if self._party == 1:
                self._turns.put(0)
            if self._queue.empty():
                self._staging.idle()

    def _hand_in(self, job: Job, answer: Answer) -> None:
        waiting = self._forget(job.ids)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
        elif self._desk is not None and job.ids:
            self._desk.deliver(answer)
        elif not job.ids:
            self._rehearsed()

    def _give_up(self, job: Job) -> None:
        waiting = self._forget(job.ids)
        if waiting is not None and not waiting.done():
            waiting.set_exception(gone())
        elif self._desk is not None:
            self._desk.fail(job, gone())

    async def _served(self, job: Job, staged: Staged | Streamed, stop: Stop) -> Answer:
        """Raises Stopped."""
        if self._party == 1 and (stop.here or stop.there):
            await self._staging.let_go(staged)
            await self._link.decline(gone(), job.ids)
            raise Stopped
        staged.begin()
        if self._party == 1:
            await self._link.begin(job, staged.first)
        if job.trace:
            self._dealer.trace = job.trace
        return await self._compute(job, staged, stop)

    async def _compute(self, job: Job, staged: Staged | Streamed, stop: Stop) -> Answer:
        program, outputs, meter = self._programs[job.model], [], Meter(0, 0, 0.0)
        async with aclosing(staged.calls(self._border(self._shaped(job)))) as calls:
            async for part, ready in calls:
                output, more = await self._link.drive(program.run(part, ready), stop)
                outputs.append(output)
                meter += more
        cost = program.plan.cost(1)
        offline = cost.offline_bytes_party0 if self._party == 0 else cost.offline_bytes_party1
        output = self._border(outputs[0] if len(outputs) == 1 else np.concatenate(outputs))
        return Answer(
            job.ids, job.batches, meter.rounds, meter.bytes_sent, offline * job.samples,
            int(meter.seconds * 1e6), output.astype("<u8", copy=False).tobytes(),
        )  # fmt: skip

    def _rehearsed(self) -> None:
        self._rehearsals += 1
        if self._rehearsals >= len(self._programs):
            self.ready.set()

    def _shaped(self, job: Job) -> Octets:
        """Its share, uint8[samples, *input shape]. Raises MalformedMessage, ShapeMismatch,
        ModelNotFound."""
        shape = self._program(job.model).graph.input.shape
        requests = max(1, len(job.ids))
        if len(job.batches) != requests or not all(1 <= b <= MAX_BATCH for b in job.batches):
            raise MalformedMessage("batches", got=list(job.batches)[:8], expected="one a request")
        if len(job.share) != job.samples * prod(shape):
            expected, got = f"{job.samples} x {list(shape)}", f"{len(job.share)} elements"
            raise ShapeMismatch("input share", got=got, expected=expected)
        return np.frombuffer(job.share, np.uint8).reshape(job.samples, *shape)

    def _program(self, model: str) -> PartyProgram:
        program = self._programs.get(model)
        if program is None:
            raise ModelNotFound("model", got=model[:64], expected="one that is served here")
        return program

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or self._broken.done():
            return
        error = task.exception()
        if error is not None:
            self._broken.set_exception(error)

    def _fail_all(self) -> None:
        error = PeerUnavailable("the session of this lane ended", hint="send the request again")
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
        if self._party == 1 and self._desk is not None:
            for job in self._jobs.values():
                if job.ids:
                    self._desk.fail(job, error)
        self._waiting.clear()
        self._jobs.clear()


def _log_type(error: Exception) -> None:
    logging.getLogger("secure_quant").error("job failed: %s", type(error).__name__)
