"""A role's bundle as a front keeps it: for workers that start again, and not in its memory."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from secure_quant.errors import ConfigError

__all__ = ["Bundle", "read_bundle"]

PIECE = 2**20


class Bundle:
    """A bundle given as bytes or as a path, whose file stays open and is read whenever it is
    needed: one that is replaced under its name is still the old one here.

    Raises ConfigError for a file that cannot be read.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        self._data, self._file, self._name = b"", -1, ""
        if isinstance(source, bytes):
            self._data = source
            return
        self._name = str(source)
        try:
            self._file = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            self._seen = self._look()
            if not stat.S_ISREG(os.fstat(self._file).st_mode):  # a pipe is read once
                with os.fdopen(self._file, "rb") as pipe:
                    self._data, self._file = pipe.read(), -1
        except OSError as error:
            raise self._unreadable(error) from error

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._data) if self._file < 0 else self._seen[0]

    def whole(self) -> bytes | memoryview:
        """All of it; of a file a view, whose pages the system takes back when it needs them."""
        if self._file < 0 or not len(self):
            return self._data
        try:
            return memoryview(mmap.mmap(self._file, len(self), access=mmap.ACCESS_READ))
        except OSError as error:
            raise self._unreadable(error) from error

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of it, a little at a time. Raises ConfigError if it is not what it was."""
        if self._file < 0:
            yield self._data
            return
        place = 0
        while place < len(self):
            try:
                piece = os.pread(self._file, min(PIECE, len(self) - place), place)
            except OSError as error:
                raise self._unreadable(error) from error
            place += len(piece)
            if not piece or (place == len(self) and self._look() != self._seen):
                got, hint = f"{self._name}: written to since", "start the role again"
                raise ConfigError("bundle", got=got, expected="the same file", hint=hint)
            yield piece

    def _look(self) -> tuple[int, int]:
        """What tells of a change."""
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def _unreadable(self, error: OSError) -> ConfigError:
        return ConfigError("bundle", got=f"{self._name}: {error.strerror}")


def read_bundle(bundle: str | os.PathLike[str] | bytes) -> bytes:
    """The bytes of a bundle given as they are or as a path. Raises ConfigError."""
    if isinstance(bundle, bytes):
        return bundle
    try:
        return Path(bundle).read_bytes()
    except OSError as error:
        raise ConfigError("bundle", got=f"{bundle}: {error.strerror}") from error
