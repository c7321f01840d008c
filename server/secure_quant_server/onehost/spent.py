"""How many samples each client was served of each model, for ever.

Every answer of a linear layer on masks tells a statistical trace of the weights; a plan says for
how many samples of one client the traces stay below 2^-40 together. Weights do not change, so
neither a new pairing nor a restart may set the count back: it is kept in a file, ahead of what is
served.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO

from secure_quant.errors import BudgetExceeded, ConfigError, PeerUnavailable
from secure_quant_server.common import logs

__all__ = ["RESERVED", "Spent"]

RESERVED = 256
"""Samples that are written down before they are served; a restart takes them as spent."""
VERSION = 1


class Spent:
    """path: of the ledger, which one process at a time may hold; None counts in memory only. For
    all threads."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Raises ConfigError for a file that is none of ours, another process's, or that cannot be
        written."""
        self._path = None if path is None else Path(path)
        self._lock, self._held = Lock(), None if self._path is None else _hold(self._path)
        self._written = {} if self._path is None else _read(self._path)
        self._spent = dict(self._written)
        self._quiet = logs.Limiter()
        if self._path is not None:
            _write(self._path, self._written)  # or the first client would find out

    def charge(self, client: str, model_hash: str, samples: int, most: int) -> None:
        """Count ``samples`` of ``client``, or none. Raises BudgetExceeded where it would have had
        more than ``most``, PeerUnavailable where it cannot be written down."""
        key = f"{model_hash} {client}"
        with self._lock:
            now = self._spent.get(key, 0) + samples
            if now > most:
                left = max(most - self._spent.get(key, 0), 0)
                raise BudgetExceeded(
                    "samples that a plan's answers may serve one client", got=samples,
                    expected=f"<= {left} of {most} for ever",
                    hint="split the model for more, or train another one",
                )  # fmt: skip
            if now > self._written.get(key, 0):
                written = self._written | {key: min(now + RESERVED, most)}
                self._write_down(written)
            self._spent[key] = now

    def _write_down(self, written: dict[str, int]) -> None:
        try:
            if self._path is not None:
                _write(self._path, written)
        except ConfigError as error:  # names the file, which is the operator's affair
            if self._quiet.more("ledger") is not None:
                logs.event("ledger not written", level=logging.ERROR, reason=str(error))
            raise PeerUnavailable(
                "the ledger of the server", hint="nothing was computed; the operator must mend it"
            ) from None
        self._written = written

    def close(self) -> None:
        """Give the file back, and what was reserved and not served."""
        with self._lock:
            if self._path is not None and self._held is not None:
                with suppress(ConfigError):  # then the reservation counts as served
                    _write(self._path, self._spent)
                self._held.close()
                self._held = None


def _hold(path: Path) -> IO[str]:
    """The lock file beside it, held until it is closed."""
    try:
        file = path.with_name(path.name + ".lock").open("a")
    except OSError as error:
        raise ConfigError("ledger", got=f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(
            "ledger", got=f"{path}, which another process holds", expected="one of its own"
        ) from error
    return file


def _read(path: Path) -> dict[str, int]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("ledger", got=f"{path}, which cannot be read") from error
    spent = document.get("spent") if isinstance(document, dict) else None
    if not isinstance(spent, dict) or document.get("version") != VERSION:
        raise ConfigError("ledger", got=f"{path}, another file", expected="a ledger of ours")
    if any(type(count) is not int or count < 0 for count in spent.values()):
        raise ConfigError("ledger", got=f"{path}, a count that is none")
    return spent


def _write(path: Path, spent: dict[str, int]) -> None:
    """All of it or nothing, and on the disk when this returns."""
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            json.dump({"version": VERSION, "spent": spent}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError("ledger", got=f"{path}: {error.strerror}") from error
