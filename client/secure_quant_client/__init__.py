"""Inference on inputs that no server sees. Loads no engine until a client is made, and never torch.

from secure_quant_client import HeClient, MpcClient, Tls

with MpcClient(["a.example:8443", "b.example:8443"], tls=Tls(ca, cert, key)) as client:
    y = client.infer(x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secure_quant import errors
from secure_quant.engines import engines, resolved
from secure_quant.transport import InsecurePlaintext, Limits, Tls
from secure_quant_client.progress import Progress
from secure_quant_client.stats import Inference, InferenceStats, NamedInference

if TYPE_CHECKING:
    from secure_quant_client.he.client import AsyncHeClient, HeClient
    from secure_quant_client.leveled.client import AsyncLeveledClient, LeveledClient
    from secure_quant_client.mpc.client import AsyncMpcClient, MpcClient
    from secure_quant_client.onehost.client import AsyncOneHostClient, OneHostClient

__all__ = [
    "AsyncHeClient",
    "AsyncLeveledClient",
    "AsyncMpcClient",
    "AsyncOneHostClient",
    "HeClient",
    "Inference",
    "InferenceStats",
    "InsecurePlaintext",
    "LeveledClient",
    "Limits",
    "MpcClient",
    "NamedInference",
    "OneHostClient",
    "Progress",
    "Tls",
    "errors",
]

_LAZY = {
    dotted.partition(":")[2]: dotted
    for each in engines()
    for dotted in (each.client, each.aio_client)
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return resolved(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
