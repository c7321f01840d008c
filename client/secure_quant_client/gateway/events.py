"""What the gateway logs: names, sizes and times, and never data. Whoever embeds it sets up
``logging`` as it likes; the command writes one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback

__all__ = ["event", "failure", "setup"]

_LOG = logging.getLogger("secure_quant_client.gateway")
LINE = 300


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {
            "time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower(),
            "event": record.getMessage(),
        }  # fmt: skip
        if record.name != _LOG.name:  # a library: no traceback, whose end may quote what came in
            says = (record.getMessage().splitlines() or [""])[0][:LINE]
            document |= {"event": "log", "logger": record.name, "says": says}
        return json.dumps(document | getattr(record, "fields", {}), default=str)


def setup() -> None:
    """Events go to standard error, and what libraries log from a warning up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def event(name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log that ``name`` happened."""
    _LOG.log(level, name, extra={"fields": fields})


def failure(name: str, error: BaseException, **fields: object) -> None:
    """An exception that was not foreseen: its type and where it arose. Its message stays out, since
    nobody vouches for what is in it."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    event(name, level=logging.ERROR, error=type(error).__name__, where=where, **fields)
