"""Evaluation keys of leveled sessions in memory: how much each caller may hold, and who makes room.

Nobody's upload can cost another caller a session in use: room is taken as bytes come, from a quota
per caller, and at the cost of that caller's own sessions first.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

from secure_quant.errors import MalformedMessage, Overloaded

__all__ = ["IDLE_S", "SESSION_BYTES", "UPLOADS", "HeldSession", "KeyStore", "Upload"]

SESSION_BYTES = 512 * 2**20
"""Of all evaluation keys held and on their way."""
SHARES = 8
"""A caller may take one of so many parts of that, or twice the largest model's keys if these are
more."""
UPLOADS = 8
"""Of one caller at once."""
IDLE_S = 900.0
"""A session unused for so long goes when anybody needs the room."""


@dataclass
class HeldSession:
    """keys: as they came. used: the clock's time of the last request."""

    caller: str
    model_hash: str
    keys: bytes = field(repr=False)
    used: float


class KeyStore:
    """Sessions by id. largest: bytes of the largest evaluation keys that any model asks for."""

    def __init__(
        self,
        largest: int,
        total: int = SESSION_BYTES,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self.quota = min(total, max(total // SHARES, 2 * largest))
        self._clock = clock
        self._sessions: OrderedDict[bytes, HeldSession] = OrderedDict()
        self._taken: Counter[str] = Counter()
        self._uploads: Counter[str] = Counter()

    def find(self, session_id: bytes) -> HeldSession | None:
        """The session, used now."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.used = self._clock()
            self._sessions.move_to_end(session_id)
        return session

    def upload(self, caller: str, model_hash: str, size: int) -> Upload:
        """Keys of ``size`` bytes on their way; nothing is taken yet. Raises Overloaded."""
        if self._uploads[caller] >= UPLOADS:
            raise Overloaded("uploads of one caller at once", expected=f"<= {UPLOADS}")
        return Upload(self, caller, model_hash, size)

    def begin(self, caller: str) -> None:
        """An upload of that caller's is under way."""
        self._uploads[caller] += 1

    def end(self, caller: str) -> None:
        """It is not any more."""
        self._uploads[caller] -= 1
        self._uploads += Counter()  # those at zero go

    def take(self, caller: str, count: int) -> None:
        """Room for bytes that came. The caller's own sessions make it, unused longest first, and
        then those of others that are idle. Raises Overloaded."""
        own = [key for key, held in self._sessions.items() if held.caller == caller]
        while own and (self._taken[caller] + count > self.quota or self._full(count)):
            self._drop(own.pop(0))
        if self._taken[caller] + count > self.quota:
            raise Overloaded("evaluation keys of one caller", expected=f"<= {self.quota} bytes")
        while self._full(count) and self._idle():
            self._drop(next(iter(self._sessions)))
        if self._full(count):
            raise Overloaded("evaluation keys", expected=f"<= {self._total} bytes at once")
        self._taken[caller] += count

    def give(self, caller: str, count: int) -> None:
        """Back what was taken."""
        self._taken[caller] -= count
        self._taken += Counter()

    def keep(self, caller: str, model_hash: str, keys: bytes) -> bytes:
        """The id of a new session; its bytes were taken."""
        session_id = secrets.token_bytes(16)
        self._sessions[session_id] = HeldSession(caller, model_hash, keys, self._clock())
        return session_id

    def clear(self) -> None:
        """Forget every key."""
        for session_id in list(self._sessions):
            self._drop(session_id)

    def _full(self, count: int) -> bool:
        return self._taken.total() + count > self._total

    def _idle(self) -> bool:
        """Whether the session unused longest is so for long enough."""
        oldest = next(iter(self._sessions.values()), None)
        return oldest is not None and self._clock() - oldest.used >= IDLE_S

    def _drop(self, session_id: bytes) -> None:
        dropped = self._sessions.pop(session_id)
        self.give(dropped.caller, len(dropped.keys))


class Upload(AbstractContextManager["Upload"]):
    """Pieces of evaluation keys as they come in."""

    def __init__(self, store: KeyStore, caller: str, model_hash: str, size: int) -> None:
        self._store, self._caller, self._model_hash = store, caller, model_hash
        self._size, self._kept = size, False
        self._data = bytearray()

    def add(self, piece: bytes) -> None:
        """Raises MalformedMessage for more than the plan implies, Overloaded."""
        if len(self._data) + len(piece) > self._size:
            raise MalformedMessage("evaluation keys", got="more", expected=f"{self._size} bytes")
        self._store.take(self._caller, len(piece))
        self._data += piece

    def finish(self) -> bytes:
        """The session's id. Raises MalformedMessage for less than the plan implies."""
        if len(self._data) != self._size:
            got = f"{len(self._data)} bytes"
            raise MalformedMessage("evaluation keys", got=got, expected=f"{self._size}")
        self._kept, keys = True, bytes(self._data)
        self._data = bytearray()  # not held twice for longer than this
        return self._store.keep(self._caller, self._model_hash, keys)

    def __enter__(self) -> Upload:
        self._store.begin(self._caller)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.end(self._caller)
        if not self._kept:
            self._store.give(self._caller, len(self._data))
            self._data = bytearray()
