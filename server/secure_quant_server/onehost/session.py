"""One pairing at the server: what a client's stream says, in order, and two threads that run it.

The event loop reads the stream, judges the order of things and runs inferences that are light; one
thread pairs and makes items, another answers the other inferences. Whatever goes wrong ends the
pairing, with all of its items.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from secure_quant.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InternalError,
    MalformedMessage,
    Overloaded,
    PeerUnavailable,
    SecureQuantError,
)
from secure_quant.onehost.cot import PAIRING_BYTES, Pairing
from secure_quant.onehost.exchange import Joint
from secure_quant.onehost.plan import KAPPA, MAX_BATCH, OneHostPlan
from secure_quant.onehost.program import Host, HostProgram
from secure_quant.onehost.stream import Course, Inbox, drive
from secure_quant.wire.gen.one_host_pb2 import (
    PairInfer,
    PairMake,
    PairMaking,
    PairOpened,
    PairRefused,
    PairRequest,
    PairResponse,
)
from secure_quant_server.common import logs
from secure_quant_server.common.messages import error_to_bytes
from secure_quant_server.onehost.stock import Stock
from secure_quant_server.onehost.watch import Watch

__all__ = ["Bounds", "Served", "Session"]

Result = TypeVar("Result")
UNREAD = 2**20
"""Bytes for a client that may wait to be sent when another item is begun."""


@dataclass(frozen=True)
class Served:
    """A model that is served. plan, host: of all its pairings."""

    hash: str
    plan: OneHostPlan
    host: Host


@dataclass(frozen=True)
class Bounds:
    """samples: in stock for one pairing. step_s: longest wait for a message of a run. idle_s:
    without any frame. turn: around what is computed ahead. charge: (samples) -> None, raises
    BudgetExceeded. noted: (kind of a run, samples), when it is done. answered: (samples, seconds
    since it was asked for) of an inference."""

    samples: int
    step_s: float
    idle_s: float
    turn: Callable[[], AbstractContextManager[object]]
    charge: Callable[[int], None]
    noted: Callable[[str, int], None]
    answered: Callable[[int, float], None]


@dataclass(frozen=True)
class _Answering:
    """An inference that was asked for. number: of its item."""

    number: int
    inbox: Inbox


class Session:
    """``frames``: reads the stream to its end. ``answers``: what goes back."""

    def __init__(self, served: Served, bounds: Bounds) -> None:
        """In the event loop."""
        self._served, self._bounds = served, bounds
        self._loop = asyncio.get_running_loop()
        self._outgoing: asyncio.Queue[PairResponse | SecureQuantError | None] = asyncio.Queue()
        self._stock = Stock(bounds.samples)
        self._ahead = Inbox(PAIRING_BYTES)
        self._online: Inbox | Course[None] = Inbox(0)
        self._idle = self._watch(bounds.idle_s, "an idle pairing", "a frame in")
        self._awaited = self._watch(bounds.step_s, "the other end's message", "within")
        self._begun = 0.0  # the inference that runs
        self._light = 0  # samples of the inference that the loop runs
        self._makes: SimpleQueue[PairMake | None] = SimpleQueue()
        self._calls: SimpleQueue[_Answering | None] = SimpleQueue()
        self._asked, self._running = 0, 0  # makes and inferences that are not done
        self._ended: SecureQuantError | None = None
        self._answering: asyncio.Task[Any] | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._counts = threading.Lock()
        self._unsent, self._flowing = 0, threading.Condition()
        self._program: HostProgram | None = None
        for name, work in (("pairing-ahead", self._make_all), ("pairing-online", self._answer_all)):
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True).start()

    # ---- in the event loop

    async def answers(self, frames: AsyncIterator[PairRequest]) -> AsyncIterator[PairResponse]:
        """Until the stream ends. Raises what ended it, unless the client did."""
        self._answering = asyncio.current_task()
        self._send(PairResponse(opened=PairOpened(samples=self._bounds.samples)))
        reader = asyncio.create_task(self._read(frames))
        try:
            while (answer := await self._outgoing.get()) is not None:
                if isinstance(answer, SecureQuantError):
                    raise answer
                yield answer
                self._sent(answer)
        finally:
            self._answering = None
            if self._cut is not None:
                self._cut.cancel()
            self.end(PeerUnavailable("the pairing", got="a stream that ended"))
            reader.cancel()
            self._idle.stop()
            self._awaited.stop()
            await asyncio.gather(reader, return_exceptions=True)

    @property
    def busy(self) -> bool:
        """An inference is under way."""
        return self._running > 0

    def end(self, error: SecureQuantError) -> None:
        """Everything that runs stops, and the items are forgotten. From any thread; the first
        error counts."""
        with self._counts:
            if self._ended is not None:
                return
            self._ended = error
        self._makes.put(None)
        self._calls.put(None)
        for inbox in (self._ahead, self._online):
            inbox.fail(error)
        self._stock.close()
        with self._flowing:
            self._flowing.notify_all()
        self._put(error)
        with suppress(RuntimeError):  # as in ``_put``
            self._loop.call_soon_threadsafe(self._cut_later)

    def _cut_later(self) -> None:
        """A client that does not even take the reason for the end keeps its place no longer."""
        if self._answering is not None:
            self._cut = self._loop.call_later(self._bounds.step_s, self._answering.cancel)

    def _sent(self, answer: PairResponse) -> None:
        """The transport took it."""
        with self._flowing:
            self._unsent -= answer.ByteSize()
            self._flowing.notify_all()

    async def _read(self, frames: AsyncIterator[PairRequest]) -> None:
        try:
            self._idle.heard()
            async for frame in frames:
                self._idle.heard()
                self._heard(frame)
            self._put(None)
        except SecureQuantError as error:
            self.end(error)
        except Exception as error:  # noqa: BLE001  or nobody would hear of it
            self._unforeseen(error)

    def _heard(self, frame: PairRequest) -> None:
        """Raises MalformedMessage for what is out of order, MaterialReused."""
        match frame.WhichOneof("message"):
            case "ahead":
                self._ahead.feed(frame.ahead)
            case "online":
                self._feed_online(frame.online)
            case "make":
                self._begin_make(frame.make)
            case "infer":
                self._begin_call(frame.infer)
            case "drop":
                self._stock.drop(frame.drop.item)
            case other:
                raise MalformedMessage(
                    "frame of a pairing", got=other or "none known", expected="one in its turn"
                )

    def _begin_make(self, asked: PairMake) -> None:
        if not 1 <= asked.batch <= MAX_BATCH:
            raise MalformedMessage("batch", got=asked.batch, expected=f"1 to {MAX_BATCH}")
        with self._counts:
            if self._asked > 1 or not self._ahead.complete:
                raise MalformedMessage("item to be made", got="another", expected="one at a time")
            self._asked += 1
        self._makes.put(asked)

    def _begin_call(self, asked: PairInfer) -> None:
        number = asked.item
        with self._counts:
            if self._running > 1 or not self._online.complete:
                raise MalformedMessage("inference", got="another", expected="one at a time")
            self._running += 1
        self._begun = time.perf_counter()
        batch = self._stock.claim(number)  # from here on it is gone, whatever comes
        total, program = self._served.plan.cost(batch).online_up, self._program
        item = self._stock.at_once(number) if self._served.plan.light(batch) else None
        if item is not None and program is not None:
            self._online = Course(program.run(item), self._say_online, total)
            self._light = item.batch
            self._awaited.heard()
        else:
            self._online = Inbox(total)
            self._calls.put(_Answering(number, self._online))
        if asked.online:
            self._feed_online(asked.online)

    def _feed_online(self, data: bytes) -> None:
        """What is light is computed here, on the spot: changes of thread would cost more. Raises
        what the inference raises."""
        running = self._online
        running.feed(data)
        if isinstance(running, Course):
            if running.over:
                self._awaited.rest()
                running.wait(0)
                self._done(self._light)
            else:
                self._awaited.heard()

    def _watch(self, seconds: float, what: str, how: str) -> Watch:
        """Ends the pairing where a sign of life comes late."""

        def late() -> None:
            self.end(DeadlineExceeded(what, expected=f"{how} {seconds:g} s"))

        return Watch(self._loop, seconds, late)

    def _say_online(self, piece: bytes) -> None:
        answer = PairResponse(online=piece)
        with self._flowing:
            self._unsent += answer.ByteSize()
        self._outgoing.put_nowait(answer)

    def _done(self, samples: int) -> None:
        """An inference was answered."""
        with self._counts:
            self._running -= 1
        self._bounds.noted("inference", samples)
        self._bounds.answered(samples, time.perf_counter() - self._begun)

    # ---- in threads

    def _guarded(self, work: Callable[[], None]) -> None:
        """Unforeseen errors end the pairing as well, and say nothing to the client."""
        try:
            work()
        except SecureQuantError as error:
            self.end(error)
        except Exception as error:  # noqa: BLE001  the border of a thread
            self._unforeseen(error)

    def _unforeseen(self, error: Exception) -> None:
        logs.failure("a pairing failed", error)
        self.end(InternalError("the pairing failed", hint="pair anew"))

    def _make_all(self) -> None:
        plan = self._served.plan
        pairing = self._run(Pairing.make(1, KAPPA, plan.lpn), self._ahead)
        program = self._program = HostProgram(plan, pairing, self._served.host)
        self._bounds.noted("pairing", 1)
        while (asked := self._makes.get()) is not None:
            self._require_read()
            self._make(program, asked)
            with self._counts:
                self._asked -= 1

    def _require_read(self) -> None:
        """That the client takes what it was sent before it is sent more: else whoever asks and
        never reads fills our memory. Raises DeadlineExceeded, or what ended the pairing."""

        def may_go_on() -> bool:
            return self._unsent <= UNREAD or self._ended is not None

        with self._flowing:
            read = self._flowing.wait_for(may_go_on, self._bounds.step_s)
            if self._ended is not None:
                raise self._ended
            if not read:
                expected = f"read within {self._bounds.step_s:g} s"
                raise DeadlineExceeded("what a client was sent", expected=expected)

    def _make(self, program: HostProgram, asked: PairMake) -> None:
        """Raises MalformedMessage, PairingSpent, DeadlineExceeded."""
        if asked.item != program.next_item:
            raise MalformedMessage("item to be made", got=asked.item, expected=program.next_item)
        plan, batch = self._served.plan, asked.batch
        try:
            self._admit(asked)
        except (BudgetExceeded, Overloaded, PeerUnavailable) as error:
            refused = PairRefused(item=asked.item, details=error_to_bytes(error))
            self._send(PairResponse(refused=refused))
            return
        extension, _ = program.pairing.fill_bytes(plan.cost(batch).taken)
        self._listen(Inbox(extension + plan.cost(batch).material_up))
        self._send(PairResponse(making=PairMaking(item=asked.item)))
        self._stock.put(self._run(program.prepare(batch), self._ahead))
        self._bounds.noted("item", batch)

    def _admit(self, asked: PairMake) -> None:
        """Room for a new item, and the client's right to it. Raises Overloaded, BudgetExceeded,
        PeerUnavailable where budgets are kept elsewhere."""
        self._stock.begin(asked.item, asked.batch)
        try:
            self._bounds.charge(asked.batch)
        except SecureQuantError:
            self._stock.undo(asked.item)
            raise

    def _listen(self, inbox: Inbox) -> None:
        with self._counts:
            self._ahead, ended = inbox, self._ended
        if ended is not None:
            inbox.fail(ended)

    def _answer_all(self) -> None:
        while (asked := self._calls.get()) is not None:
            program = self._program
            if program is None:
                raise MalformedMessage("inference", got="no pairing yet")
            item = self._stock.take(asked.number, self._bounds.step_s)
            self._run(program.run(item), asked.inbox, ahead=False)
            self._done(item.batch)

    def _run(self, run: Joint[Result], inbox: Inbox, *, ahead: bool = True) -> Result:
        """To its end. Raises MalformedMessage, PairingSpent, DeadlineExceeded."""

        def send(piece: bytes) -> None:
            self._send(PairResponse(ahead=piece) if ahead else PairResponse(online=piece))

        turn = self._bounds.turn if ahead else nullcontext
        return drive(run, send, inbox, lambda: self._bounds.step_s, turn).result

    def _send(self, answer: PairResponse) -> None:
        with self._flowing:
            self._unsent += answer.ByteSize()
        self._put(answer)

    def _put(self, answer: PairResponse | SecureQuantError | None) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it the stream
            self._loop.call_soon_threadsafe(self._outgoing.put_nowait, answer)
