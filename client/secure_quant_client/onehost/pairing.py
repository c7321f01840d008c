"""A pairing with the host, as the client holds it: a thread that makes items ahead, and inferences
that use each of them once. It lives as long as its stream; whatever goes wrong ends both.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import (
    InternalError,
    MalformedMessage,
    PairingSpent,
    SecureQuantError,
)
from secure_quant.onehost.cot import PAIRING_BYTES, Pairing
from secure_quant.onehost.exchange import Joint
from secure_quant.onehost.plan import KAPPA, MAX_BATCH, OneHostPlan
from secure_quant.onehost.program import ClientProgram, Item
from secure_quant.onehost.stream import PROTOCOL, Course, Driven, drive
from secure_quant.wire import from_status
from secure_quant.wire.gen.one_host_pb2 import (
    PairDrop,
    PairInfer,
    PairMake,
    PairOpen,
    PairRequest,
)
from secure_quant.wire.rpc_status import METADATA_KEY
from secure_quant_client.driver import Deadline, Metadata
from secure_quant_client.forks import forgotten_by_children, require_own
from secure_quant_client.onehost.link import Link
from secure_quant_client.onehost.masks import MaskKeys

__all__ = ["PAUSE_S", "Made", "Paired"]

PAUSE_S = 0.25
"""Longest time in which an inference that waits cannot be cancelled, and says nothing."""

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Made:
    """An item, and what it took: bytes up and down, seconds."""

    item: Item
    bytes_up: int
    bytes_down: int
    seconds: float


class Paired:
    """channel: of its own. stock: samples of the size asked for last that lie ready. step_s:
    longest wait for a message of what is made ahead.

    One inference at a time. An item that was begun is made beside it; the next waits until it is
    over.
    """

    def __init__(
        self, channel: grpc.Channel, metadata: Metadata, plan: OneHostPlan, *, stock: int,
        step_s: float,
    ) -> None:  # fmt: skip
        self._plan, self._stock, self._step_s = plan, stock, step_s
        self._process = os.getpid()
        self._changed = Condition()
        self._ready: deque[Made] = deque()
        self._batch, self._waiting, self._busy = 1, False, False
        self._quota = 0
        self._refused: SecureQuantError | None = None
        self._program: ClientProgram | None = None
        self._link = Link(channel, metadata, self._noticed)
        forgotten_by_children(self)
        Thread(target=self._guarded, name="one-host-stock", daemon=True).start()

    @property
    def alive(self) -> bool:
        """The host holds it too, for all that is known."""
        return self._link.error is None

    def most(self, deadline: Deadline) -> int:
        """Samples of one item, at most: what the host allows. Raises DeadlineExceeded, or what
        ended the pairing."""
        with self._changed:
            self._wait(lambda: self._quota > 0, deadline)
            return min(self._quota, MAX_BATCH)

    def fill(self, batch: int, deadline: Deadline) -> None:
        """Have the stock for ``batch`` full. Raises as ``item``."""
        with self._changed:
            self._batch, self._refused = batch, None
            self._changed.notify_all()
            self._wait(lambda: not self._short(), deadline)

    def infer(
        self, q: NDArray[np.int8], deadline: Deadline
    ) -> Generator[int, None, tuple[Made, Driven[Int]]]:
        """The integers at the Output, with an item that is gone at both ends from now on; and the
        pairing with it unless all goes well. Pauses after every PAUSE_S, with the exchanges begun.

        Raises DeadlineExceeded, BudgetExceeded, MalformedMessage, PeerUnavailable.
        """
        require_own("pairing", self._process)
        yield from self._wanting(len(q), deadline)
        made, course = self._begin(q)
        try:
            course.begin()
            while not course.rests(min(PAUSE_S, deadline.remaining())):
                yield course.flights
            return made, course.wait(0)
        except BaseException as error:
            named = error if isinstance(error, SecureQuantError) else None
            self.end(named or PairingSpent("a pairing", got="an inference that was broken off"))
            raise
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _wanting(self, batch: int, deadline: Deadline) -> Generator[int, None, None]:
        """Until there is an item of that size. Raises what ended the pairing, or refused one."""
        with self._changed:
            self._batch, self._refused = batch, None
            if self._find(batch) is not None:
                return
            self._waiting = True
            self._changed.notify_all()
        try:
            while not self._there(batch, min(PAUSE_S, deadline.remaining())):
                yield 0
        finally:
            with self._changed:
                self._waiting = False

    def _there(self, batch: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        with self._changed:
            while self._find(batch) is None:
                if (error := self._link.error or self._refused) is not None:
                    raise error
                if (left := end - time.monotonic()) <= 0:
                    return False
                self._changed.wait(left)
            return True

    def _begin(self, q: NDArray[np.int8]) -> tuple[Made, Course[Int]]:
        """Take an item of as many samples, which is there, and who hears of the inference: the
        thread that reads the stream runs it, once it has begun."""
        batch = len(q)
        with self._changed:
            made = self._find(batch)
            if made is None or self._program is None:
                raise self._link.error or PairingSpent("a pairing", got="no item", hint="pair anew")
            self._ready.remove(made)
            self._busy = True
            total = self._plan.cost(batch).online_down
            course = Course(self._program.run(made.item, q), self._online(made.item.number), total)
            self._link.hear("online", course)
            return made, course

    def _online(self, number: int) -> Callable[[bytes], None]:
        """Sends pieces of an inference: with the first the host is told that it begins."""
        begun = False

        def send(piece: bytes) -> None:
            nonlocal begun
            if begun:
                self._link.send(PairRequest(online=piece))
            else:
                begun = True
                self._link.send(PairRequest(infer=PairInfer(item=number, online=piece)))

        return send

    def end(self, error: SecureQuantError) -> None:
        """Forget it; whoever waits is told."""
        self._link.end(error)

    def forget(self) -> None:
        """In a forked process: all of it is the parent's."""
        self._changed, self._ready, self._program = Condition(), deque(), None

    def _noticed(self) -> None:
        """The link has ended."""
        with self._changed:
            self._ready.clear()
            self._changed.notify_all()

    def _find(self, batch: int) -> Made | None:
        return next((made for made in self._ready if made.item.batch == batch), None)

    def _wait(self, there: Any, deadline: Deadline) -> None:
        """Inside ``_changed``."""
        while not there():
            if self._link.error is not None:
                raise self._link.error
            if self._refused is not None:
                raise self._refused
            self._changed.wait(min(deadline.remaining(), 1.0))

    # ---- the thread that makes items

    def _guarded(self) -> None:
        try:
            self._work()
        except SecureQuantError as error:
            self.end(error)
        except BaseException:
            self.end(InternalError("a pairing failed at the client", hint="pair anew"))
            raise

    def _work(self) -> None:
        # Before the first word: the host's first bytes follow its answer at once.
        inbox = self._link.listen("ahead", PAIRING_BYTES)
        opening = PairOpen(model_hash=self._plan.graph.hash, protocol=PROTOCOL)
        self._link.send(PairRequest(open=opening))
        answer = self._link.answered(self._step_s)
        if answer.WhichOneof("message") != "opened" or answer.opened.samples < 1:
            raise MalformedMessage("the host's first answer", expected="opened")
        made = drive(
            Pairing.make(0, KAPPA, self._plan.lpn), self._ahead, inbox, lambda: self._step_s
        )
        keys: list[MaskKeys] = []

        def share(name: str, r: NDArray[np.uint64]) -> Joint[NDArray[np.uint64]]:
            return keys[-1].share(name, r)

        program = ClientProgram(self._plan, made.result, share)
        with self._changed:
            self._program, self._quota = program, answer.opened.samples
            self._changed.notify_all()
        while (batch := self._next()) is not None:
            keys[:] = [MaskKeys(self._plan.masked)]  # a key serves one item
            ready = self._make(program, batch)
            keys.clear()
            with self._changed:
                if ready is not None:
                    self._ready.append(ready)
                self._changed.notify_all()

    def _make(self, program: ClientProgram, batch: int) -> Made | None:
        """None where the host refused. Raises MalformedMessage, PairingSpent, DeadlineExceeded."""
        start, number, plan = time.perf_counter(), program.next_item, self._plan
        _, extension = program.pairing.fill_bytes(plan.cost(batch).taken)
        total = extension + plan.cost(batch).material_down
        inbox = self._link.listen("ahead", total)
        self._link.send(PairRequest(make=PairMake(item=number, batch=batch)))
        answer = self._link.answered(self._step_s)
        match answer.WhichOneof("message"):
            case "refused" if answer.refused.item == number:
                refused = self._named(answer.refused.details)
                with self._changed:
                    self._refused = refused
                return None
            case "making" if answer.making.item == number:
                driven = drive(program.prepare(batch), self._ahead, inbox, lambda: self._step_s)
                seconds = time.perf_counter() - start
                return Made(driven.result, driven.sent, driven.received, seconds)
            case other:
                raise MalformedMessage("the host's answer", got=other, expected="making")

    def _ahead(self, piece: bytes) -> None:
        self._link.send(PairRequest(ahead=piece))

    @staticmethod
    def _named(details: bytes) -> SecureQuantError:
        return from_status(grpc.StatusCode.INTERNAL, None, ((METADATA_KEY, details),))

    def _short(self) -> bool:
        """There is something to make. Inside ``_changed``."""
        if self._waiting and self._find(self._batch) is None:
            return True
        held = sum(made.item.batch for made in self._ready if made.item.batch == self._batch)
        return held + self._batch <= min(self._stock, self._quota)

    def _next(self) -> int | None:
        """The size of the next item, once one is wanted; None when the pairing has ended."""
        with self._changed:
            while True:
                if self._link.error is not None:
                    return None
                if self._refused is None and not self._busy and self._short():
                    batch = self._batch
                    break
                self._changed.wait()
            dropped = self._make_room(batch)
        for number in dropped:
            self._link.send(PairRequest(drop=PairDrop(item=number)))
        return batch

    def _make_room(self, batch: int) -> list[int]:
        """Numbers of items, the oldest of other sizes first, that give way."""
        dropped = []
        while self._ready and sum(m.item.batch for m in self._ready) + batch > self._quota:
            others = [made for made in self._ready if made.item.batch != batch]
            gone = (others or list(self._ready))[0]
            self._ready.remove(gone)
            dropped.append(gone.item.number)
        return dropped
