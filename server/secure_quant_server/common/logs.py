"""One JSON object per line on standard error. Events carry names, sizes and times, never data.

Whatever else speaks in this process (gRPC, asyncio, warnings, an exception that nobody caught) is
put into the same form: its first line at most, and where it arose in place of a traceback. The same
of one library is said ten times a minute: gRPC, for one, speaks of whatever a peer does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any

__all__ = ["Limiter", "event", "failure", "follow_tasks", "level", "says", "setup"]

_LOG = logging.getLogger("secure_quant")
LINE = 300
ALIKE = 24
"""Characters of a message: what comes after them may be a peer's own."""


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.name.partition(".")[0] != _LOG.name:
            lines = record.getMessage().splitlines() or [""]
            document |= {"event": "log", "logger": record.name, "says": lines[0][:LINE]}
            if record.exc_info and record.exc_info[1] is not None:
                document |= _arose(record.exc_info[1])
            if unsaid := getattr(record, "unsaid", 0):
                document["unsaid"] = unsaid
        document.update(getattr(record, "fields", {}))
        return json.dumps(document, default=str)


class _Sparse(logging.Filter):
    """Of others' records that begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self._limiter = Limiter()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == _LOG.name:
            return True
        kind = record.exc_info[0] if record.exc_info else None
        unsaid = self._limiter.more((record.name, str(record.msg)[:ALIKE], kind))
        record.__dict__["unsaid"] = unsaid or 0
        return unsaid is not None


def setup(level: str = "INFO") -> None:
    """Send the events of this process to standard error, and what others log from a warning up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    handler.addFilter(_Sparse())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(level.upper())
    _LOG.propagate = False
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _thread_ended
    sys.unraisablehook = _unraisable


def event(name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log that ``name`` happened. Fields must not hold secret data."""
    if _LOG.isEnabledFor(level):
        _LOG.log(level, name, extra={"fields": fields})


def says(level: int) -> bool:
    """Whether events of that level are logged: for who would take trouble over one."""
    return _LOG.isEnabledFor(level)


def failure(name: str, error: BaseException, **fields: object) -> None:
    """Log an exception that was not foreseen: its type and where it arose. Its message stays out,
    since nobody vouches for what is in it."""
    event(name, level=logging.ERROR, **_arose(error), **fields)


def level() -> str:
    """The name of the level that is logged, for ``setup`` in another process."""
    return logging.getLevelName(_LOG.getEffectiveLevel())


def follow_tasks() -> None:
    """In the running loop: what a task or callback raised and nobody looked at is one event, never
    a traceback on standard error."""
    asyncio.get_running_loop().set_exception_handler(_unretrieved)


def _unretrieved(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        failure("task failed", error)
    else:
        event("task failed", level=logging.ERROR, reason=str(context.get("message"))[:200])


class Limiter:
    """How often the same may be said: ``burst`` times in ``window_s`` seconds, of each key.

    Keeps the ``most`` keys used last.
    """

    def __init__(
        self,
        burst: int = 10,
        window_s: float = 60.0,
        most: int = 4096,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst, self._window, self._most, self._clock = burst, window_s, most, clock
        self._said: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def more(self, key: Hashable) -> int | None:
        """None if it is not to be said now; else how often it was left unsaid in the window before
        this one."""
        now = self._clock()
        since, count = self._said.pop(key, (now, 0))
        unsaid = 0
        if now - since >= self._window:
            unsaid, since, count = max(0, count - self._burst), now, 0
        self._said[key] = (since, count + 1)
        if len(self._said) > self._most:
            self._said.popitem(last=False)
        return unsaid if count < self._burst else None


def _arose(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "where": where}


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    failure("uncaught", error)


def _thread_ended(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None:
        failure("uncaught", arguments.exc_value, thread=getattr(arguments.thread, "name", None))


def _unraisable(arguments: sys.UnraisableHookArgs) -> None:
    if arguments.exc_value is not None:
        failure("uncaught", arguments.exc_value)
