"""Finished items on disk, beyond what memory holds: bounded, encrypted, each read once.

Items are sealed with AES-256-GCM under a key that is drawn when the spool opens and that nothing
but this process ever holds. What a dealer that crashed leaves behind can therefore not be read, and
the next one deletes it unread: no item outlives the process that made it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secure_quant.errors import ConfigError

__all__ = ["Spool"]

SUFFIX = ".item"
LOCK = "lock"
TAG_BYTES = 16
RETRY_S = 60.0
"""After a write that failed, none is tried for so long."""


class Spool:
    """A folder of one dealer. ``limit``: bytes of files in it. Safe to use from several threads.

    on_failure is called, in the caller's thread, for every item that could not be written or read
    back. failing says that the disk refused the last write less than RETRY_S ago.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        limit: int,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Raises ConfigError if another dealer has the folder, or if it cannot be used."""
        self._folder, self._limit, self._on_failure = Path(folder), limit, on_failure
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError("spool", got=_why(error), expected="a folder to write to") from error
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clear()
        except OSError as error:
            os.close(self._held)
            raise ConfigError(
                "spool", got=_why(error), expected="a folder that no other dealer uses"
            ) from error
        self._cipher = AESGCM(secrets.token_bytes(32))
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}
        self._next = self._bytes = 0
        self._failed_at = float("-inf")

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return self._bytes

    @property
    def failing(self) -> bool:
        return time.monotonic() - self._failed_at < RETRY_S

    def room(self, size: int) -> bool:
        """Whether an item of ``size`` bytes would be taken now."""
        return not self.failing and self._bytes + size + TAG_BYTES <= self._limit

    def put(self, item: bytes | bytearray | memoryview) -> int | None:
        """Write an item; the number to ``take`` it with, or None where there is no room or the disk
        refuses: then the item is the caller's to use or to drop."""
        size = len(item) + TAG_BYTES
        with self._lock:
            if not self.room(len(item)):
                return None
            number, self._next = self._next, self._next + 1
            self._sizes[number] = size
            self._bytes += size
        sealed = self._cipher.encrypt(_nonce(number), item, None)
        try:
            self._write(self._path(number), sealed)
        except OSError as error:
            self._failed_at = time.monotonic()
            self._forget(number)
            self._report(_why(error))
            return None
        return number

    def take(self, number: int) -> memoryview | None:
        """The item, whose file is gone before anybody has it. None if it was taken before, or if
        what is on the disk is not what was written."""
        with self._lock:
            if number not in self._sizes:
                return None
        path = self._path(number)
        try:
            sealed = path.read_bytes()
            path.unlink()
            return memoryview(self._cipher.decrypt(_nonce(number), sealed, None))
        except OSError as error:
            self._report(_why(error))
        except InvalidTag:
            self._report("not what was written")
        finally:
            self._forget(number)
        return None

    def close(self) -> None:
        """Delete everything and leave the folder to others."""
        try:
            self._clear()
        finally:
            os.close(self._held)

    def _report(self, reason: str) -> None:
        if self._on_failure is not None:
            self._on_failure(reason)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._bytes -= self._sizes.pop(number, 0)

    def _write(self, path: Path, sealed: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                rest = memoryview(sealed)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _clear(self) -> None:
        """Delete every item, ours or left by a dealer that is gone."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            path.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:016x}{SUFFIX}"


def _nonce(number: int) -> bytes:
    """Used once: numbers never repeat under a key, which lives as long as they count."""
    return number.to_bytes(12, "little")


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
