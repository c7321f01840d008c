"""Ask a running role through the standard gRPC health service whether it serves.

Exit status 0 if it answers SERVING: made for the probes of containers.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_quant.transport import Security

__all__ = ["HELP", "asked", "configure", "is_serving", "run"]

HELP = "ask a role whether it serves"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from secure_quant.engines import roles
    from secure_quant_cli.tls_options import add_tls_options

    parser.add_argument("--role", choices=tuple(roles()), required=True, help="who must answer")
    parser.add_argument("--target", required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--caller", metavar="ROLE", help="whose certificate to present; the role's own by default"
    )
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true")
    add_tls_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer."""
    from secure_quant_cli.checks import address, durations
    from secure_quant_cli.console import folded, print_json
    from secure_quant_cli.tls_options import tls_from

    durations(arguments, "timeout")
    address("--target", arguments.target)
    security = tls_from(arguments, arguments.caller or arguments.role)
    reason = _reason(arguments.target, arguments.role, security, arguments.timeout)
    if arguments.json:
        about = {"role": arguments.role, "target": arguments.target}
        print_json(about | {"serving": reason is None, "reason": reason})
    else:
        print("serving" if reason is None else folded(f"not serving: {reason}"))
    return 0 if reason is None else 1


def _reason(address: str, role: str, security: Security, timeout: float) -> str | None:
    """Why not; None if it serves."""
    from secure_quant.errors import DeadlineExceeded, SecureQuantError

    try:
        if asked(address, role, security, timeout):
            return None
    except DeadlineExceeded:
        return f"no answer within {timeout:g} s"
    except SecureQuantError as error:
        return str(error)
    return "it runs and waits: for its peers, its dealer, its workers, or its end"


def is_serving(address: str, role: str, security: Security, timeout: float = 1.0) -> bool:
    """True once the server of ``role`` at ``host:port`` answers SERVING."""
    from secure_quant.errors import SecureQuantError

    try:
        return asked(address, role, security, timeout)
    except SecureQuantError:
        return False


def asked(address: str, role: str, security: Security, timeout: float = 1.0) -> bool:
    """As ``is_serving``. Raises PeerUnavailable and its kin where nobody answers."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from secure_quant.transport import sync_channel
    from secure_quant.wire import raised

    with sync_channel(address, security, server_role=role) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise raised(error) from error
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
