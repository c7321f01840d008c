"""Channels and server ports: mutual TLS by default, roles in certificates, deadlines, limits."""

from secure_quant.transport.channels import (
    DEADLINE_S,
    Limits,
    add_port,
    aio_channel,
    channel_options,
    server_credentials,
    server_options,
    sync_channel,
)
from secure_quant.transport.contexts import fresh_context
from secure_quant.transport.fresh import FreshCredentials, SwappedTls, expiry, warn_of_expiry
from secure_quant.transport.roles import Role, peer_role
from secure_quant.transport.streams import FrameStream, dial_stream, listen_stream
from secure_quant.transport.tls import (
    Credentials,
    InsecurePlaintext,
    Security,
    ServerPair,
    Tls,
    check_security,
    own_role,
    require_role,
)
from secure_quant.transport.turns import Turns

__all__ = [
    "DEADLINE_S",
    "Credentials",
    "FrameStream",
    "FreshCredentials",
    "InsecurePlaintext",
    "Limits",
    "Role",
    "Security",
    "ServerPair",
    "SwappedTls",
    "Tls",
    "Turns",
    "add_port",
    "aio_channel",
    "channel_options",
    "check_security",
    "dial_stream",
    "expiry",
    "fresh_context",
    "listen_stream",
    "own_role",
    "peer_role",
    "require_role",
    "server_credentials",
    "server_options",
    "sync_channel",
    "warn_of_expiry",
]
