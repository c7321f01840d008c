"""Speak the Open Inference Protocol v2 in front, and our protocols to the servers.

Runs on the user's side, beside the application: inputs and answers are in the clear in it and on
the ports where it listens, so it listens on loopback unless it is given a certificate. Programs
that speak to KServe or Triton speak to it as they are. Several cells, as many --target for each,
share the requests. docs/gateway.md says more.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_quant_client.gateway.listen import ListenTls
    from secure_quant_client.gateway.options import GatewayOptions

__all__ = ["HELP", "configure", "run"]

HELP = "speak KServe's and Triton's protocol for servers"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from secure_quant.engines import engines
    from secure_quant_cli.tls_options import add_tls_options, add_token_option

    exact = [each.name for each in engines() if each.exact]
    parser.add_argument("--engine", choices=exact, required=True)
    parser.add_argument(
        "--target", action="append", required=True, metavar="HOST:PORT",
        help="where the server listens; if there are several, each, or all with commas between",
    )  # fmt: skip
    parser.add_argument(
        "--model", action="append", metavar="NAME[=HASH]", dest="models",
        help="what callers call a model, and its hash; without a hash, the only one that the "
             "servers serve (repeatable; default: model)",
    )  # fmt: skip
    where = parser.add_argument_group("where it listens (one of the first two is required)")
    add = where.add_argument
    add("--listen", metavar="HOST:PORT", help="the protocol over gRPC")
    add("--http-listen", metavar="HOST:PORT", help="the protocol over HTTP")
    add("--listen-cert", type=Path, metavar="FILE", help="certificate chain that callers are shown")
    add("--listen-key", type=Path, metavar="FILE", help="its private key")
    add("--listen-ca", type=Path, metavar="FILE",
        help="who signs the callers' certificates, which they must show then")  # fmt: skip
    add = parser.add_argument_group("limits").add_argument
    add("--timeout", type=float, metavar="SECONDS",
        help="longest request (default: 30, or what the model's work may take)")  # fmt: skip
    add("--batch", type=int, metavar="N",
        help="most samples joined into one inference (default: what the servers take)")  # fmt: skip
    add("--at-once", type=int, default=2, metavar="N",
        help="inferences of a model side by side (default: %(default)s)")  # fmt: skip
    add("--pending", type=int, default=256, metavar="N",
        help="requests that may wait (default: %(default)s)")  # fmt: skip
    add("--message-bytes", type=int, metavar="N", help="largest message (default: 64 MiB)")
    add_token_option(parser)
    parser.add_argument(
        "--until-stdin-closes", action="store_true",
        help="also stop when standard input ends: for a parent that must not leave orphans",
    )  # fmt: skip
    add_tls_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve; returns once told to stop."""
    from secure_quant_cli.console import warn
    from secure_quant_client.gateway import events
    from secure_quant_client.gateway.serve import serve_gateway

    options = options_from(arguments)
    if not all(options.models.values()):
        warn("no hash with --model: the servers choose the model that answers")
    if arguments.until_stdin_closes:
        threading.Thread(target=_watch_stdin, daemon=True).start()
    events.setup()
    asyncio.run(serve_gateway(options))
    return 0


def options_from(arguments: argparse.Namespace) -> GatewayOptions:
    """Raises ConfigError and its kin, ValueOutOfRange."""
    from secure_quant.transport import Limits
    from secure_quant_cli.checks import address, counts, durations
    from secure_quant_cli.infer import targets_of
    from secure_quant_cli.tls_options import tls_from, token_from
    from secure_quant_client.gateway.options import GatewayOptions

    counts(arguments, "batch", "at_once", "pending", "message_bytes")
    durations(arguments, "timeout")
    for flag in ("listen", "http_listen"):
        if getattr(arguments, flag) is not None:
            address(f"--{flag.replace('_', '-')}", getattr(arguments, flag), listen=True)
    size = {} if arguments.message_bytes is None else {"message_bytes": arguments.message_bytes}
    options = GatewayOptions(
        engine=arguments.engine, targets=targets_of(arguments),
        security=tls_from(arguments, "client"), listen=arguments.listen,
        http_listen=arguments.http_listen, listen_tls=_listen_tls(arguments),
        models=_models(arguments.models or ["model"]), token=token_from(arguments),
        limits=Limits(**size), timeout_s=arguments.timeout,
        batch=arguments.batch, at_once=arguments.at_once, pending=arguments.pending,
    )  # fmt: skip
    options.check()
    return options


def _listen_tls(arguments: argparse.Namespace) -> ListenTls | None:
    from secure_quant.errors import ConfigError
    from secure_quant_client.gateway.listen import ListenTls

    cert, key, ca = arguments.listen_cert, arguments.listen_key, arguments.listen_ca
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None:
        raise ConfigError("--listen-cert and --listen-key", got="one", expected="both")
    return ListenTls(cert, key, ca)


def _models(given: list[str]) -> dict[str, str]:
    from secure_quant.errors import ConfigError
    from secure_quant_cli.checks import model_hash

    found: dict[str, str] = {}
    for each in given:
        name, _, hash_ = each.partition("=")
        if not name or not name.isprintable() or "/" in name or name in found:
            raise ConfigError("--model", got=ascii(each[:80]), expected="NAME or NAME=HASH, once")
        if "=" in each:
            model_hash("--model", hash_)
        found[name] = hash_
    return found


def _watch_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
