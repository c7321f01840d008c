"""gRPC channels and server ports with TLS, message limits and keepalive."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from secure_quant.errors import ConfigError
from secure_quant.transport.fresh import FreshCredentials
from secure_quant.transport.roles import Role
from secure_quant.transport.tls import Credentials, InsecurePlaintext, Security, check_security

__all__ = [
    "Limits",
    "add_port",
    "aio_channel",
    "channel_options",
    "replicated",
    "server_credentials",
    "server_options",
    "sync_channel",
]

Options = list[tuple[str, int | str]]
LONGEST = 2**31 - 1
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """message_bytes     largest message sent or received; a longer one is refused by its length
                      prefix, before memory is taken for it. A server takes no longer ones than
                      its models need.
    deadline_s        for a call whose caller names none. None: DEADLINE_S, and for a large model
                      what it may need: its work on slow cores, and its rounds.
    round_trip_s      of a round of the two parties of secret sharing, at most, for that.
    connect_s         for one attempt to connect, handshake included.
    keepalive_s       idle time after which the peer is asked whether it still lives.
    keepalive_grace_s time it has to answer.
    """

    message_bytes: int = 64 * 2**20
    deadline_s: float | None = None
    round_trip_s: float = 0.1
    connect_s: float = 5.0
    keepalive_s: float = 20.0
    keepalive_grace_s: float = 5.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            got = getattr(self, name)
            if name == "deadline_s" and got is None:
                continue
            kind = int if name == "message_bytes" else (int, float)
            if not isinstance(got, kind) or isinstance(got, bool) or not 0 < got < math.inf:
                raise ConfigError(name, got=ascii(got)[:80], expected="a finite number > 0")
            most = LONGEST if name == "message_bytes" else LONGEST // 1000
            if got > most:  # gRPC counts bytes and milliseconds in 32 bits
                raise ConfigError(name, got=ascii(got)[:80], expected=f"<= {most}")


STREAMS = 100
LOOKAHEAD = 2**18
PING_MS = 5000
HANDSHAKE_MS = 10_000
UNUSED_MS = 15 * 60_000


def _common_options(limits: Limits) -> Options:
    """Of either end: keepalive."""
    return [
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.keepalive_grace_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


ATTEMPTS = 5
"""Turns begin anew, anywhere, where a replica goes away: three may meet the same one twice."""


def replicated(service: str, limits: Limits) -> Options:
    """Of a client's end whose server may be several replicas without state behind one name: calls
    go to each in turn, and one of ``service`` that brought no answer (UNAVAILABLE) goes out again,
    the same bytes, to another. Source: gRFC A6 (retries), A24 (service config)."""
    retry = {
        "maxAttempts": ATTEMPTS, "initialBackoff": "0.1s", "maxBackoff": "2s",
        "backoffMultiplier": 3, "retryableStatusCodes": ["UNAVAILABLE"],
    }  # fmt: skip
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{"service": service}], "retryPolicy": retry}],
    }
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.enable_retries", 1),
        # A message beyond this would be sent once and not again.
        ("grpc.per_rpc_retry_buffer_size", limits.message_bytes),
    ]


def channel_options(limits: Limits) -> Options:
    """Of a client's end. The first reconnects come fast: a restarted peer is found again in well
    under a second. (gRPC takes the limit of one attempt from ``min_reconnect_backoff_ms``.)"""
    return [
        *_common_options(limits),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", int(limits.connect_s * 1000)),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.use_local_subchannel_pool", 1),
        # Peers are named by their addresses; a proxy that the environment names for the web is not
        # on the way to them.
        ("grpc.enable_http_proxy", 0),
    ]


def server_options(
    limits: Limits, request_bytes: int | None = None, max_connections: int = LONGEST
) -> Options:
    """Of a server's end. A port that is taken is an error, not shared.

    request_bytes: largest message received, where it is below ``limits.message_bytes``.
    max_connections: at once, those in their handshake included; one more is closed. One that has
    carried no call for ``UNUSED_MS`` is closed too: its client connects again when it next calls.
    Of a call whose message nobody reads yet, gRPC holds ``LOOKAHEAD`` bytes and no more: without a
    probe of the network's capacity that window never grows by itself.
    """
    return [
        *_common_options(limits),
        ("grpc.max_receive_message_length", request_bytes or limits.message_bytes),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_connection_idle_ms", UNUSED_MS),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", LOOKAHEAD),
        # A client that asks more often whether we live is sent away; ours ask every keepalive_s.
        ("grpc.http2.min_ping_interval_without_data_ms", _least_between_pings(limits)),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.so_reuseport", 0),
    ]


def _least_between_pings(limits: Limits) -> int:
    return min(PING_MS, int(limits.keepalive_s * 500))


def aio_channel(
    target: str, security: Security, *, server_role: str, limits: Limits | None = None,
    service: str | None = None,
) -> grpc.aio.Channel:  # fmt: skip
    """A channel of the running event loop to ``host:port``, whose server must prove
    ``server_role``, one of ``engines.roles()``. service: that the replicas behind that name offer,
    if there may be several (see ``replicated``). Raises InsecureRefused, ConfigError,
    ValueOutOfRange for another role."""
    credentials, options = _client_end(security, server_role, limits or Limits(), service)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


def sync_channel(
    target: str, security: Security, *, server_role: str, limits: Limits | None = None,
    service: str | None = None, options: Sequence[tuple[str, int | str]] = (),
) -> grpc.Channel:  # fmt: skip
    """As ``aio_channel``, for threads. options: more of gRPC's."""
    credentials, own = _client_end(security, server_role, limits or Limits(), service)
    every = [*own, *options]
    if credentials is None:
        return grpc.insecure_channel(target, every)
    return grpc.secure_channel(target, credentials, every)


def server_credentials(security: Security) -> grpc.ServerCredentials | None:
    """Of a server that demands a certificate of every caller; None for plaintext. Files that are
    replaced count from the next connection on."""
    if isinstance(check_security(security), InsecurePlaintext):
        return None
    fresh = FreshCredentials(security)  # type: ignore[arg-type]  # narrowed by the line above

    def look() -> grpc.ServerCertificateConfiguration | None:
        found = fresh.look()
        return None if found is None else _configuration(found)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(fresh.current),
        look,  # type: ignore[arg-type]  # the stubs forget that None means no change
        require_client_authentication=True,
    )


def _configuration(found: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(found.key, found.cert)], found.ca)


class _Server(Protocol):
    """What ``grpc.Server`` and ``grpc.aio.Server`` have in common here."""

    def add_insecure_port(self, address: str) -> int: ...

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int: ...


def add_port(server: _Server, address: str, security: Security) -> int:
    """Listen on ``host:port`` (port 0 lets the system choose); the port. Raises ConfigError."""
    credentials = server_credentials(security)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError("listen", got=address, expected="a free address") from error


def _client_end(
    security: Security, server_role: str, limits: Limits, service: str | None
) -> tuple[grpc.ChannelCredentials | None, Options]:
    role, options = Role.parse(server_role), channel_options(limits)
    if service is not None:
        options += replicated(service, limits)
    checked = check_security(security)
    if isinstance(checked, InsecurePlaintext):
        return None, options
    loaded = checked.load()
    options.append(("grpc.ssl_target_name_override", checked.server_name or role.dns_name))
    return grpc.ssl_channel_credentials(loaded.ca, loaded.key, loaded.cert), options
