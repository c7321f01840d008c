"""Serve one role until SIGTERM or Ctrl-C.

party           one of the two parties of secret sharing; which one, its bundle says
party0, party1  the same, with its own table in a --config file
dealer          correlated randomness for both parties
he              linear layers on ciphertexts

Every setting is a flag, an environment variable SECURE_QUANT_NAME, or a key of the TOML file.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from secure_quant.errors import ConfigError

__all__ = ["HELP", "check", "configure", "run"]

PARTIES = ("party", "party0", "party1")

HELP = "serve one role"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each role."""
    from secure_quant_cli.settings import add_settings

    roles = parser.add_subparsers(dest="role", metavar="ROLE", required=True)
    helps = {
        "party": "one of the two parties of secret sharing",
        "party0": "the same, party 0",
        "party1": "the same, party 1",
        "dealer": "correlated randomness for both parties",
        "he": "linear layers on ciphertexts",
    }
    for role, text in helps.items():
        with suppress(ModuleNotFoundError):  # an image without the servers' code
            add_settings(roles.add_parser(role, help=text), role)


def run(arguments: argparse.Namespace) -> int:
    """Serve; returns once told to stop."""
    from secure_quant_cli.main import quit_at_once

    # Until the role waits for these itself there is nothing to clean up, and an exception may be
    # lost in a callback of a library that is being loaded.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, quit_at_once)
    import uvloop

    from secure_quant_cli.checks import free_ports_at
    from secure_quant_cli.settings import resolve
    from secure_quant_server.common import logs

    resolve(arguments)
    check(arguments)
    if arguments.role in PARTIES and arguments.link_listen is not None:
        free_ports_at("--link-listen", arguments.link_listen, arguments.lanes)
    if arguments.until_stdin_closes:
        threading.Thread(target=_watch_stdin, daemon=True).start()
    logs.setup(arguments.log_level)
    # What is slow to import is imported before the loop runs.
    role = {"dealer": _dealer, "he": _he}.get(arguments.role, _party)
    uvloop.run(role(arguments))
    return 0


def check(arguments: argparse.Namespace) -> None:
    """What ``resolve`` found, before anything is started. Raises ConfigError, ValueOutOfRange."""
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
    if arguments.role in PARTIES:
        given = [arguments.peer is not None, arguments.link_listen is not None]
        if sum(given) != 1:
            got = "both" if all(given) else "neither"
            raise ConfigError("--peer (party 0), --link-listen (party 1)", got=got, expected="one")
        address("--dealer", arguments.dealer)
        if arguments.peer is not None:
            address("--peer", arguments.peer, run=arguments.lanes)
        else:
            address("--link-listen", arguments.link_listen, run=arguments.lanes, listen=True)


def _party(arguments: argparse.Namespace) -> Coroutine[Any, Any, None]:
    from importlib.util import find_spec

    # Else each lane would find out, and end, again and again.
    if arguments.border != "none" and find_spec("crypten") is None:
        raise ModuleNotFoundError("CrypTen is not installed", name="crypten")
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.common.workers import Template
    from secure_quant_server.mpc.kinds import lane_kind

    template = Template(lane_kind(arguments.border, arguments.worker_memory))
    template.launch()  # loads what lanes need while this process loads what a front needs
    from secure_quant_server.mpc import serve_party

    # Party 0 calls the link of party 1; the bundle must be of the party that the options imply.
    party, link = (0, arguments.peer) if arguments.peer else (1, arguments.link_listen)
    return serve_party(
        arguments.bundle, link=link, party=party, tls=tls_from(arguments, f"party{party}"),
        template=template, **_options(arguments),
    )  # fmt: skip


def _dealer(arguments: argparse.Namespace) -> Coroutine[Any, Any, None]:
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.mpc import serve_dealer

    tls = tls_from(arguments, "dealer")
    return serve_dealer(arguments.bundle, tls=tls, **_options(arguments))


def _he(arguments: argparse.Namespace) -> Coroutine[Any, Any, None]:
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.he import HeOptions, serve_he

    security = tls_from(arguments, "he")
    return serve_he(HeOptions(bundles=arguments.bundle, security=security, **_options(arguments)))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the role's dataclass."""
    from secure_quant.transport import Limits
    from secure_quant_cli.settings import LIMITS, settings_of, spelled

    settings = settings_of(arguments.role)
    found = {each.field: getattr(arguments, each.name) for each in settings if each.field}
    limits = {
        name: value for name in LIMITS if (value := getattr(arguments, spelled(name))) is not None
    }
    return found | {"limits": Limits(**limits)}


def _watch_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # unbuffered: nothing is locked at shutdown
        pass
    os.kill(os.getpid(), signal.SIGTERM)
