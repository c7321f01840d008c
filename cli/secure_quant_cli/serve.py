"""Serve one role until SIGTERM or Ctrl-C.

party   one of the two parties of secret sharing; which one, its bundle says
dealer  correlated randomness for both parties
he      linear layers on ciphertexts
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

__all__ = ["HELP", "configure", "run"]

HELP = "serve one role"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each role."""
    roles = parser.add_subparsers(dest="role", metavar="ROLE", required=True)
    party = roles.add_parser("party", help="one of the two parties of secret sharing")
    link = party.add_mutually_exclusive_group(required=True)
    link.add_argument("--peer", metavar="HOST:PORT", help="party 0: where party 1's link listens")
    link.add_argument("--link-listen", metavar="HOST:PORT", help="party 1: where its link listens")
    party.add_argument("--dealer", required=True, metavar="HOST:PORT")
    party.add_argument(
        "--lanes", type=int, default=1,
        help="inferences that run side by side; lane n links over the n-th port above the first",
    )  # fmt: skip
    party.add_argument(
        "--link-protocol", choices=("tls", "grpc"), default="tls",
        help="what the parties speak with each other, the same at both: frames over TLS, or gRPC "
        "where proxies between them pass nothing else",
    )  # fmt: skip
    party.add_argument(
        "--border", choices=("crypten", "none"), default="crypten",
        help="what shares pass as where they enter and leave a lane: CrypTen's types, or plain "
        "arrays, for hosts that load neither CrypTen nor torch; the integers are the same",
    )  # fmt: skip
    party.add_argument(
        "--staged", type=int, default=3, metavar="N",
        help="inferences of one sample whose material each lane keeps expanded, per model; party 1 "
        "decides for both",
    )  # fmt: skip
    party.add_argument(
        "--staged-bytes", type=int, default=128 * 2**20, metavar="BYTES",
        help="memory of each lane for expanded material of all models (default: 128 MiB)",
    )  # fmt: skip
    party.add_argument(
        "--material-bytes", type=int, default=64 * 2**20, metavar="BYTES",
        help="memory of each lane for material of each model (default: 64 MiB)",
    )  # fmt: skip
    party.add_argument(
        "--wait-seconds", type=float, default=10.0, metavar="S",
        help="longest wait for the half of a request that the client sends to the other party",
    )  # fmt: skip
    party.add_argument(
        "--batch-wait-seconds", type=float, default=0.0, metavar="S",
        help="party 0: while every lane is busy, let requests of several clients wait this long to "
        "join one inference; 0 joins none",
    )  # fmt: skip
    dealer = roles.add_parser("dealer", help="correlated randomness for both parties")
    dealer.add_argument(
        "--stock-bytes", type=int, default=256 * 2**20, metavar="BYTES",
        help="memory for each model's finished items (default: 256 MiB)",
    )  # fmt: skip
    dealer.add_argument(
        "--spool", type=Path, metavar="DIR",
        help="finished items beyond that, sealed under a key that never leaves the process; the "
        "folder is this dealer's alone, and what a former one left in it is deleted",
    )  # fmt: skip
    dealer.add_argument(
        "--spool-bytes", type=int, default=2**32, metavar="BYTES",
        help="most that may lie there, for all models together (default: 4 GiB)",
    )  # fmt: skip
    he = roles.add_parser("he", help="linear layers on ciphertexts")
    he.add_argument("--workers", type=int, help="worker processes; one per core by default")
    for role in (party, dealer, he):
        _common(role)
    for role in (party, he):
        role.add_argument(
            "--tokens", type=Path, metavar="FILE",
            help="client tokens (NAME SHA256 a line) to ask for besides a certificate",
        )  # fmt: skip
        role.add_argument(
            "--budget", type=int, metavar="SAMPLES",
            help="what each client may ask in the time of --budget-seconds",
        )  # fmt: skip
        role.add_argument("--budget-seconds", type=float, default=3600.0, metavar="S")


def _common(parser: argparse.ArgumentParser) -> None:
    from secure_quant_cli.tls_options import add_tls_options

    parser.add_argument(
        "--bundle", type=Path, action="append", required=True, metavar="FILE.sqb",
        help="what `secure-quant split` made for this role (repeatable: several models)",
    )  # fmt: skip
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="Prometheus, plain HTTP")
    parser.add_argument("--log-level", choices=("debug", "info", "warning"), default="info")
    parser.add_argument(
        "--until-stdin-closes", action="store_true",
        help="also stop when standard input ends: for a parent that must not leave orphans",
    )  # fmt: skip
    add_tls_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve; returns once told to stop."""
    import uvloop

    from secure_quant_server.common import logs

    _check(arguments)
    # Until the role waits for these itself there is nothing to clean up, and an exception may be
    # lost in a callback of a library that is being loaded.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _quit)
    if arguments.until_stdin_closes:
        threading.Thread(target=_watch_stdin, daemon=True).start()
    logs.setup(arguments.log_level)
    # What is slow to import is imported before the loop runs.
    role = {"party": _party, "dealer": _dealer, "he": _he}[arguments.role]
    uvloop.run(role(arguments))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError, ValueOutOfRange."""
    from secure_quant_cli.checks import address, counts, durations, free_ports_at

    counts(
        arguments, "lanes", "staged", "staged_bytes", "material_bytes", "stock_bytes",
        "spool_bytes", "workers", "budget",
    )  # fmt: skip
    durations(arguments, "wait_seconds", "budget_seconds")
    if getattr(arguments, "batch_wait_seconds", 0.0):
        durations(arguments, "batch_wait_seconds")
    address("--listen", arguments.listen, listen=True)
    if arguments.metrics is not None:
        address("--metrics", arguments.metrics, listen=True)
    if arguments.role == "party":
        address("--dealer", arguments.dealer)
        if arguments.peer is not None:
            address("--peer", arguments.peer, run=arguments.lanes)
        else:
            free_ports_at("--link-listen", arguments.link_listen, arguments.lanes)


def _party(arguments: argparse.Namespace) -> Coroutine[Any, Any, None]:
    from importlib.util import find_spec

    if find_spec("crypten") is None:  # else each lane would find out, and end, again and again
        raise ModuleNotFoundError("CrypTen is not installed", name="crypten")
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.mpc import serve_party

    # Party 0 calls the link of party 1; the bundle must be of the party that the options imply.
    party, link = (0, arguments.peer) if arguments.peer else (1, arguments.link_listen)
    return serve_party(
        arguments.bundle, listen=arguments.listen, link=link, dealer=arguments.dealer,
        lanes=arguments.lanes, staged=arguments.staged,
        staged_bytes=arguments.staged_bytes, material_bytes=arguments.material_bytes,
        wait_s=arguments.wait_seconds,
        batch_wait_s=arguments.batch_wait_seconds, link_protocol=arguments.link_protocol,
        border=arguments.border,
        party=party, tokens=arguments.tokens, tls=tls_from(arguments, f"party{party}"),
        **_options(arguments),
    )  # fmt: skip


def _dealer(arguments: argparse.Namespace) -> Coroutine[Any, Any, None]:
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.mpc import serve_dealer

    return serve_dealer(
        arguments.bundle, listen=arguments.listen, tls=tls_from(arguments, "dealer"),
        metrics=arguments.metrics, stock_bytes=arguments.stock_bytes,
        spool=arguments.spool, spool_bytes=arguments.spool_bytes,
    )  # fmt: skip


def _he(arguments: argparse.Namespace) -> Coroutine[Any, Any, None]:
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.he import HeOptions, serve_he

    options = HeOptions(
        bundles=arguments.bundle, listen=arguments.listen, security=tls_from(arguments, "he"),
        workers=arguments.workers, tokens=arguments.tokens, **_options(arguments),
    )  # fmt: skip
    return serve_he(options)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "metrics": arguments.metrics,
        "budget": arguments.budget,
        "budget_window_s": arguments.budget_seconds,
    }


def _quit(number: int, frame: FrameType | None) -> NoReturn:
    os.write(sys.stderr.fileno(), b"secure-quant: interrupted\n")
    os._exit(128 + number)


def _watch_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # unbuffered: nothing is locked at shutdown
        pass
    os.kill(os.getpid(), signal.SIGTERM)
