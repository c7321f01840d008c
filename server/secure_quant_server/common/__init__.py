"""What every server shares: the port, who may call, budgets, health, metrics, logs."""

from secure_quant_server.common import logs
from secure_quant_server.common.access import (
    Access,
    Caller,
    Tokens,
    current_caller,
    make_token,
)
from secure_quant_server.common.admission import Held
from secure_quant_server.common.budgets import Budgets
from secure_quant_server.common.bundles import Bundle, read_bundle
from secure_quant_server.common.memory import keep_freed_memory
from secure_quant_server.common.metrics import Metrics, Workers
from secure_quant_server.common.requests import Cost, Requests
from secure_quant_server.common.server import (
    GrpcServer,
    ServerOptions,
    on_stop_signal,
)
from secure_quant_server.common.shared_budgets import budgets_of

__all__ = [
    "Access",
    "Budgets",
    "Bundle",
    "Caller",
    "Cost",
    "GrpcServer",
    "Held",
    "Metrics",
    "Requests",
    "ServerOptions",
    "Tokens",
    "Workers",
    "budgets_of",
    "current_caller",
    "keep_freed_memory",
    "logs",
    "make_token",
    "on_stop_signal",
    "read_bundle",
]
