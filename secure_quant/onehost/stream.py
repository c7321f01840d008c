"""A joint protocol over a stream of bytes: both ends know how long every message is, so messages
lie end to end and empty ones are not sent at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Condition
from typing import Generic, TypeVar

from secure_quant.errors import DeadlineExceeded, MalformedMessage, SecureQuantError
from secure_quant.onehost.exchange import Joint

__all__ = ["PIECE", "PROTOCOL", "Driven", "Inbox", "drive", "pieces"]

PROTOCOL = 2
"""What both ends of a connection speak."""
PIECE = 2**18
"""Most bytes of a run in one frame."""

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
                got, expected = f"{len(data)} bytes", f"1 to {self._left} that are left of a run"
                raise MalformedMessage("piece of a run", got=got, expected=expected)
            self._left -= len(data)
            self._bytes += data
            self._changed.notify_all()

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
    sent = received = flights = 0
    message: bytes | None = None
    try:
        while True:
            with turn():
                exchange = next(run) if message is None else run.send(message)
            for piece in pieces(exchange.sent):
                send(piece)
            message = inbox.take(exchange.expected, seconds()) if exchange.expected else b""
            sent, received = sent + len(exchange.sent), received + exchange.expected
            flights += bool(exchange.sent or exchange.expected)
    except StopIteration as end:
        return Driven(end.value, sent, received, flights)
    finally:
        run.close()
