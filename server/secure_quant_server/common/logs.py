"""One JSON object per line on standard error. Events carry names, sizes and times, never data."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import traceback
from typing import Any

__all__ = ["event", "failure", "follow_tasks", "level", "setup"]

_LOG = logging.getLogger("secure_quant")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        document.update(getattr(record, "fields", {}))
        return json.dumps(document, default=str)


def setup(level: str = "INFO") -> None:
    """Send the events of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(level.upper())
    _LOG.propagate = False


def event(name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log that ``name`` happened. Fields must not hold secret data."""
    if _LOG.isEnabledFor(level):
        _LOG.log(level, name, extra={"fields": fields})


def failure(name: str, error: BaseException, **fields: object) -> None:
    """Log an exception that was not foreseen: its type and where it arose. Its message stays out,
    since nobody vouches for what is in it."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    event(name, level=logging.ERROR, error=type(error).__name__, where=where, **fields)


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
