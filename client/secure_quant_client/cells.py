"""Several cells that serve one model: which one an inference goes to, and where it goes when that
one is away.

A cell is a set of servers that answer together, such as two parties. An inference runs in one of
them. It goes elsewhere only while nothing of it can have begun: a connection that does not come up,
a model that is not told, a call that was refused as Overloaded. What fails later is the caller's to
repeat, since one-time material may be used up. Each attempt shares the input anew.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import ConfigError, HashMismatch, PeerUnavailable
from secure_quant_client.progress import Telling
from secure_quant_client.stats import Inference

if TYPE_CHECKING:
    from secure_quant_client.driver import Deadline

__all__ = ["AsyncChoice", "AsyncReach", "Cell", "Cells", "Choice", "Reach", "check_cells"]

PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""After a failure, before the cell is looked at again; doubled each time it is still away."""
REACH_S = 2.0
"""Longest wait for a connection to come up while there may be another cell."""
PROBE_S = 2.0
_SETTLED = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)

One = TypeVar("One")
Model = TypeVar("Model", covariant=True)


class Choice(Protocol[Model]):
    """Several cells in the place of one: for threads."""

    def model(self, deadline: Deadline) -> Model: ...

    def infer(
        self, q: NDArray[Any], deadline: Deadline, tell: Telling | None = None
    ) -> Inference[np.int64]: ...

    def check(self, deadline: Deadline) -> None: ...


class AsyncChoice(Protocol[Model]):
    """The same for asyncio."""

    async def model(self, deadline: Deadline) -> Model: ...

    async def infer(
        self, q: NDArray[Any], deadline: Deadline, tell: Telling | None = None
    ) -> Inference[np.int64]: ...

    async def check(self, deadline: Deadline) -> None: ...

    async def stop(self) -> None: ...


def check_cells(cells: Sequence[Sequence[str]], roles: Sequence[str]) -> list[tuple[str, ...]]:
    """The addresses of each cell, once. Raises ConfigError."""
    found = [tuple(each) for each in cells if not isinstance(each, str)]
    if not found or len(found) != len(cells) or any(len(each) != len(roles) for each in found):
        expected = f"in each: host:port of {', of '.join(roles)}"
        raise ConfigError("cells", got=ascii(cells)[:80], expected=expected)
    if len(set(found)) != len(found):
        raise ConfigError("cells", got="one twice", expected="each once")
    return found


@dataclass(eq=False)
class Cell(Generic[One]):
    """client: of this cell alone. running: inferences of ours in it. away: it failed, and is asked
    from ``due`` on whether it is back; asked: by somebody just now."""

    client: One
    running: int = 0
    away: bool = False
    due: float = 0.0
    pause: float = PAUSE_S
    asked: bool = False


class Cells(Generic[One]):
    """The choice among cells, without I/O; for threads and for asyncio."""

    def __init__(
        self, clients: Sequence[One], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.all = [Cell(client) for client in clients]
        self._clock, self._lock, self._turn = clock, threading.Lock(), 0
        self._hash: str | None = None

    def pick(self, tried: Sequence[Cell[One]]) -> Cell[One] | None:
        """The least loaded that is not away, in turn where several are; else the one away longest.
        None once all were tried."""
        with self._lock:
            self._turn += 1
            count = len(self.all)
            order = [self.all[(self._turn + i) % count] for i in range(count)]
            left = [each for each in order if each not in tried]
            near = [each for each in left if not each.away]
            if near:
                return min(near, key=lambda each: each.running)
            return min(left, key=lambda each: each.due, default=None)

    def due(self) -> list[Cell[One]]:
        """Cells that are to be asked now whether they are back; told by ``back`` or ``failed``."""
        with self._lock:
            found = [
                each for each in self.all
                if each.away and not each.asked and self._clock() >= each.due
            ]  # fmt: skip
            for each in found:
                each.asked = True
            return found

    def failed(self, cell: Cell[One]) -> None:
        """It is away, for all that is known."""
        with self._lock:
            if cell.away and not cell.asked and self._clock() < cell.due:
                return  # others of the same moment
            cell.pause = min(2 * cell.pause, LONGEST_PAUSE_S) if cell.away else PAUSE_S
            cell.away, cell.asked, cell.due = True, False, self._clock() + cell.pause

    def back(self, cell: Cell[One]) -> None:
        """It serves."""
        with self._lock:
            cell.away = cell.asked = False

    @contextmanager
    def running(self, cell: Cell[One]) -> Iterator[None]:
        """Around an inference in it."""
        with self._lock:
            cell.running += 1
        try:
            yield
        finally:
            with self._lock:
                cell.running -= 1

    def require_same(self, model_hash: str) -> None:
        """Raises HashMismatch for a model that is not the other cells'."""
        with self._lock:
            self._hash = self._hash or model_hash
            if self._hash != model_hash:
                what = "the cells serve different models"
                raise HashMismatch(what, got=model_hash, expected=self._hash)


def _unreached(client: Any, place: int) -> PeerUnavailable:
    who = f"{client._service.roles[place]} at {client._targets[place]}"
    return PeerUnavailable(who, got="no connection", hint="nothing was sent")


class Reach:
    """Whether a client's connections are up, for threads."""

    def __init__(self, client: Any) -> None:
        self._client, self._changed = client, threading.Condition()
        self._states: dict[int, grpc.ChannelConnectivity | None] = {}
        # Kept, since a channel knows who subscribed by identity.
        self._notes = [self._noter(place) for place in range(len(client._channels))]

    def require(self, seconds: float) -> None:
        """Connects where that is needed. Raises PeerUnavailable; nothing was sent then."""
        until = time.monotonic() + min(seconds, REACH_S)
        for place, channel in enumerate(self._client._channels):
            with self._changed:
                if self._states.get(place) is grpc.ChannelConnectivity.READY:
                    continue
                self._states[place] = None
            channel.unsubscribe(self._notes[place])
            channel.subscribe(self._notes[place], try_to_connect=True)
        for place in range(len(self._notes)):
            if self._settled(place, until) is not grpc.ChannelConnectivity.READY:
                raise _unreached(self._client, place)

    def _noter(self, place: int) -> Callable[[grpc.ChannelConnectivity], None]:
        def note(state: grpc.ChannelConnectivity) -> None:
            with self._changed:
                self._states[place] = state
                self._changed.notify_all()

        return note

    def _settled(self, place: int, until: float) -> grpc.ChannelConnectivity | None:
        """The state once it is one to rest in, or what it is by then."""
        with self._changed:
            while (state := self._states.get(place)) not in _SETTLED:
                if not self._changed.wait(until - time.monotonic()):
                    break
            return state


class AsyncReach:
    """The same for asyncio."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def require(self, seconds: float) -> None:
        """As ``Reach.require``."""
        for place, channel in enumerate(self._client._channels):
            try:
                async with asyncio.timeout(min(seconds, REACH_S)):
                    while (state := channel.get_state(try_to_connect=True)) not in _SETTLED:
                        await channel.wait_for_state_change(state)
            except TimeoutError as error:
                raise _unreached(self._client, place) from error
            if state is not grpc.ChannelConnectivity.READY:
                raise _unreached(self._client, place)
