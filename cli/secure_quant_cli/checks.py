"""What the options of commands must be. Each check raises a ConfigError or ValueOutOfRange that
names the option, before anything is started or computed."""

from __future__ import annotations

import argparse
import os
import re
import socket
from contextlib import ExitStack
from pathlib import Path

from secure_quant.errors import ConfigError, ValueOutOfRange

__all__ = ["address", "can_write", "counts", "durations", "free_ports_at", "host", "model_hash"]

MOST = 2**63 - 1
MOST_S = 1e9
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?")


def counts(arguments: argparse.Namespace, *names: str) -> None:
    """Whole numbers of at least 1, where they are given."""
    for name in names:
        got = getattr(arguments, name, None)
        if got is not None and not 1 <= got <= MOST:
            shown = got if abs(got) <= MOST else "more than 64 bits"
            raise ValueOutOfRange(_option(name), got=shown, expected=">= 1")


def durations(arguments: argparse.Namespace, *names: str) -> None:
    """Seconds above 0, where they are given; neither NaN nor longer than any timer runs."""
    for name in names:
        got = getattr(arguments, name, None)
        if got is not None and not 0 < got <= MOST_S:
            expected = f"> 0 and <= {MOST_S:g} seconds"
            raise ValueOutOfRange(_option(name), got=got, expected=expected)


def address(option: str, text: str, *, run: int = 1, listen: bool = False) -> tuple[str, int]:
    """``host:port``, IPv6 in brackets, of which ``run`` ports from the first on are meant. Port 0,
    any that is free, is for listening alone."""
    match = _ADDRESS.fullmatch(text)
    port = int(match["port"]) if match else -1
    if not match or not (0 if listen else 1) <= port <= 65536 - run:
        raise ConfigError(option, got=ascii(text[:80]), expected="HOST:PORT")
    return match["host"].strip("[]"), port


def free_ports_at(option: str, text: str, run: int) -> None:
    """Nothing listens there: for ports that worker processes open later, out of sight."""
    name, port = address(option, text, run=run, listen=True)
    with ExitStack() as stack:
        for number in range(port, port + run) if port else ():
            try:
                (kind, _, _, _, place), *_ = socket.getaddrinfo(
                    name, number, type=socket.SOCK_STREAM
                )
                probe = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
            except (OSError, UnicodeError) as error:
                got = f"{name}:{number}: {getattr(error, 'strerror', None) or 'no name of a host'}"
                raise ConfigError(option, got=got, expected="a free address") from error


def host(option: str, text: str) -> str:
    """A DNS name, perhaps with a star in front, or an IP address."""
    if len(text) > 253 or not (_NAME.fullmatch(text) or _is_ip(text)):
        raise ConfigError(option, got=ascii(text[:80]), expected="a DNS name or an IP address")
    return text


def can_write(option: str, path: Path) -> None:
    """A file can be made there, so that work is not lost that cannot be stored."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(option, got=str(path), expected="a file in a folder that can be written")


def model_hash(option: str, text: str | None) -> None:
    """64 hexadecimal digits, if given."""
    if text is not None and not re.fullmatch("[0-9a-f]{64}", text):
        raise ConfigError(option, got=ascii(text[:80]), expected="64 digits 0-9 a-f")


def _is_ip(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return True
    return False


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
