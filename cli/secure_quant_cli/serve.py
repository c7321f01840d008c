"""Serve one role until SIGTERM or Ctrl-C.

party           one of the two parties of secret sharing; which one, its bundle says
party0, party1  the same, with its own table in a --config file
dealer          correlated randomness for both parties
he              linear layers on ciphertexts
onehost         the one server, which holds the weights and sees no input

Every setting is a flag, an environment variable SECURE_QUANT_NAME, or a key of the TOML file.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_quant.engines import Role
    from secure_quant.errors import ModelError

__all__ = ["HELP", "check", "configure", "run"]

HELP = "serve one role"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each role."""
    from secure_quant.engines import served
    from secure_quant_cli.settings import add_settings
    from secure_quant_cli.usage import Help, remember

    roles = parser.add_subparsers(dest="role", metavar="ROLE", required=True)
    for role in served().values():
        with suppress(ModuleNotFoundError):  # an image without the servers' code
            added = roles.add_parser(role.name, help=role.help, formatter_class=Help)
            remember(added)
            add_settings(added, role.name)


def run(arguments: argparse.Namespace) -> int:
    """Serve; returns once told to stop."""
    from secure_quant_cli.main import quit_at_once

    # Until the role waits for these itself there is nothing to clean up, and an exception may be
    # lost in a callback of a library that is being loaded.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, quit_at_once)
    import uvloop

    from secure_quant.engines import resolved, served
    from secure_quant.errors import ModelError
    from secure_quant_cli.settings import resolve
    from secure_quant_server.common import logs
    from secure_quant_server.common.memory import one_heap

    one_heap()
    resolve(arguments)
    check(arguments)
    role = served()[arguments.role]
    _check_addresses(role, arguments, free=True)
    if arguments.until_stdin_closes:
        threading.Thread(target=_watch_stdin, daemon=True).start()
    logs.setup(arguments.log_level)
    # What is slow to import is imported before the loop runs.
    try:
        uvloop.run(resolved(role.start)(arguments))
    except ModelError as error:
        raise _named(error, role, arguments.bundle) from error
    return 0


def _named(error: ModelError, role: Role, bundles: Sequence[Path]) -> ModelError:
    """The error with the bundle that it is about."""
    from secure_quant.engines import resolved
    from secure_quant.errors import ModelError

    for path in bundles:
        try:
            resolved(role.model_of)(role.name, path.read_bytes())
        except (ModelError, OSError):
            return error.at(path)
    return error


def check(arguments: argparse.Namespace) -> None:
    """What ``resolve`` found, before anything is started. Raises ConfigError, ValueOutOfRange."""
    from secure_quant.engines import resolved, served
    from secure_quant_cli.checks import address, counts, durations
    from secure_quant_cli.settings import names, settings_of

    settings = settings_of(arguments.role)
    counts(arguments, *names(settings, "int"))
    may_be_0 = {"batch_wait_seconds", "grace_seconds"}
    seconds = names(settings, "float")
    durations(arguments, *(n for n in seconds if n not in may_be_0 or getattr(arguments, n)))
    address("--listen", arguments.listen, listen=True)
    if arguments.metrics is not None and not arguments.metrics.isdecimal():
        address("--metrics", arguments.metrics, listen=True)
    if getattr(arguments, "http_listen", None) is not None:
        address("--http-listen", arguments.http_listen, listen=True)
    role = served()[arguments.role]
    if role.check is not None:
        resolved(role.check)(arguments)
    _check_addresses(role, arguments)


def _check_addresses(role: Role, arguments: argparse.Namespace, *, free: bool = False) -> None:
    """free: that nothing listens yet where the role's workers will, out of sight."""
    from secure_quant.engines import roles
    from secure_quant_cli.checks import address, free_ports_at

    for each in role.addresses:
        told = getattr(arguments, each.setting)
        flag = "--" + each.setting.replace("_", "-")
        # Of what is no role, every worker has its own port.
        run = getattr(arguments, role.workers) if role.workers and each.of not in roles() else 1
        if told is None or (free and not each.listens):
            continue
        if free:
            free_ports_at(flag, told, run)
        else:
            address(flag, told, run=run, listen=each.listens)


def _watch_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # unbuffered: nothing is locked at shutdown
        pass
    os.kill(os.getpid(), signal.SIGTERM)
