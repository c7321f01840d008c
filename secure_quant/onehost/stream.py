"""A joint protocol over a stream of bytes: both ends know how long every message is, so messages
lie end to end and empty ones are not sent at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Condition, Event, Lock
from typing import Generic, TypeVar

from secure_quant.errors import DeadlineExceeded, MalformedMessage, SecureQuantError
from secure_quant.onehost.exchange import Joint

__all__ = ["PIECE", "PROTOCOL", "Course", "Driven", "Inbox", "drive", "pieces"]

PROTOCOL = 4
"""What both ends of a connection speak."""
PIECE = 2**18
"""Most bytes of a run in one frame."""
HELD = 2**14
"""Bytes that go out at once. Fewer wait while there is something to compute, so that a frame often
carries the end of one exchange and the beginning of the next."""

Result = TypeVar("Result")


class Inbox:
    """What one run will hear, ``total`` bytes. Whoever reads the stream feeds it; the run takes."""

    def __init__(self, total: int) -> None:
        self._left, self._bytes = total, bytearray()
        self._changed = Condition()
        self._error: SecureQuantError | None = None

    @property
    def complete(self) -> bool:
        """All of it has come."""
        return self._left == 0

    def feed(self, data: bytes) -> None:
        """Raises MalformedMessage for more than the run takes in all."""
        with self._changed:
            if not data or len(data) > self._left:
                raise _too_much(data, self._left)
            self._left -= len(data)
            self._bytes += data
            self._changed.notify_all()

    def holds(self, count: int) -> bool:
        """``take`` would not wait for so many."""
        with self._changed:
            return len(self._bytes) >= count

    def take(self, count: int, seconds: float) -> bytes:
        """The next ``count`` bytes. Raises DeadlineExceeded, or what ``fail`` was told."""
        end = time.monotonic() + seconds
        with self._changed:
            while len(self._bytes) < count:
                if self._error is not None:
                    raise self._error
                left = end - time.monotonic()
                if left <= 0:
                    expected = f"within {seconds:.3g} s"
                    raise DeadlineExceeded("the other end's message", expected=expected)
                self._changed.wait(left)
            made = bytes(memoryview(self._bytes)[:count])
            del self._bytes[:count]
            return made

    def fail(self, error: SecureQuantError) -> None:
        """Whoever waits, or will, is told."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()


@dataclass(frozen=True)
class Driven(Generic[Result]):
    """result: of the run. sent, received: bytes. flights: exchanges in which anything was sent."""

    result: Result
    sent: int
    received: int
    flights: int


def pieces(message: bytes) -> list[bytes]:
    """As they are sent, in order."""
    return [message[i : i + PIECE] for i in range(0, len(message), PIECE)]


class _Steps(Generic[Result]):
    """A run between two messages. begun: it said something. expected: bytes of the next message.
    ended: with what."""

    def __init__(self, run: Joint[Result], send: Callable[[bytes], None]) -> None:
        self._run, self._send = run, send
        self._held = bytearray()
        self._sent = self._received = 0
        self.begun = False
        self.flights = 0
        self.expected = 0
        self.ended: Driven[Result] | None = None

    def go(self, message: bytes) -> None:
        """On with what the other end sent; at first with nothing. Raises what the run does."""
        try:
            exchange = self._run.send(message) if self.begun else next(self._run)
        except StopIteration as end:
            self.let_go()
            self.ended = Driven(end.value, self._sent, self._received, self.flights)
            return
        self.begun, self.expected = True, exchange.expected
        self._held += exchange.sent
        self._sent += len(exchange.sent)
        self._received += exchange.expected
        self.flights += bool(exchange.sent or exchange.expected)
        if len(self._held) >= HELD:
            self.let_go()

    def let_go(self) -> None:
        """What was held back goes out: nothing can be computed before more comes."""
        for piece in pieces(bytes(self._held)):
            self._send(piece)
        self._held.clear()

    def close(self) -> None:
        self._run.close()


def drive(
    run: Joint[Result],
    send: Callable[[bytes], None],
    inbox: Inbox,
    seconds: Callable[[], float],
    turn: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Driven[Result]:
    """``run`` to its end. send: takes a piece, and does not wait. seconds: how long the next
    message may take; may raise. turn: held while the run computes.

    Raises what the run, the inbox and ``seconds`` raise; the run is then closed.
    """
    steps, message = _Steps(run, send), b""
    try:
        while True:
            with turn():
                steps.go(message)
            if steps.ended is not None:
                return steps.ended
            if not inbox.holds(steps.expected):
                steps.let_go()
            message = inbox.take(steps.expected, seconds()) if steps.expected else b""
    finally:
        steps.close()


class Course(Generic[Result]):
    """A run that whoever reads the stream pushes on, without a thread of its own. It hears
    ``total`` bytes. send: takes a piece, and does not wait."""

    def __init__(self, run: Joint[Result], send: Callable[[bytes], None], total: int) -> None:
        self._steps = _Steps(run, send)
        self._left, self._bytes = total, bytearray()
        self._lock, self._over = Lock(), Event()
        self._error: BaseException | None = None

    @property
    def complete(self) -> bool:
        """All of what it hears has come."""
        return self._left == 0

    @property
    def over(self) -> bool:
        """It has a result, or failed."""
        return self._over.is_set()

    @property
    def flights(self) -> int:
        """Exchanges begun."""
        return self._steps.flights

    def rests(self, seconds: float) -> bool:
        """Whether it is over, or is within that time."""
        return self._over.wait(seconds)

    def begin(self) -> None:
        """Up to where it waits for the other end, unless what came has begun it."""
        with self._lock:
            if not self._steps.begun and not self.over:
                self._advance(b"")

    def feed(self, data: bytes) -> None:
        """On as far as it goes. Raises MalformedMessage for more than the run takes in all."""
        with self._lock:
            if not data or len(data) > self._left:
                raise _too_much(data, self._left)
            self._left -= len(data)
            self._bytes += data
            if not self.over and len(self._bytes) >= self._steps.expected:
                self._advance(self._next())

    def fail(self, error: SecureQuantError) -> None:
        """It is given up; whoever waits is told."""
        with self._lock:
            self._end(error)

    def wait(self, seconds: float) -> Driven[Result]:
        """The result. Raises DeadlineExceeded, what the run raised, or what ``fail`` was told."""
        if not self._over.wait(seconds):
            raise DeadlineExceeded("the other end's message", expected=f"within {seconds:.3g} s")
        if self._steps.ended is None:
            raise self._error or DeadlineExceeded("the other end's message")
        return self._steps.ended

    def _advance(self, message: bytes) -> None:
        try:
            self._steps.go(message)
            while self._steps.ended is None and len(self._bytes) >= self._steps.expected:
                self._steps.go(self._next())
            self._steps.let_go()
        except BaseException as error:  # noqa: BLE001  whoever waits is told
            self._end(error)
        else:
            if self._steps.ended is not None:
                self._over.set()

    def _next(self) -> bytes:
        count = self._steps.expected
        made = bytes(memoryview(self._bytes)[:count])
        del self._bytes[:count]
        return made

    def _end(self, error: BaseException) -> None:
        if not self._over.is_set():
            self._error = error
            self._steps.close()
            self._over.set()


def _too_much(data: bytes, left: int) -> MalformedMessage:
    got, expected = f"{len(data)} bytes", f"1 to {left} that are left of a run"
    return MalformedMessage("piece of a run", got=got, expected=expected)
