"""What a lane is told. Light: nothing that serves is imported here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

__all__ = ["Border", "LaneOptions", "LinkProtocol"]

LinkProtocol = Literal["tls", "grpc"]
Border = Literal["crypten", "none"]


@dataclass(frozen=True, kw_only=True)
class LaneOptions:
    """What a lane speaks and may hold. See ``Staging`` for what is kept ready.

    link_protocol   ``tls``: frames over TLS; ``grpc``: where proxies between the parties let
                    nothing but HTTP/2 pass, at about twice the latency. The same at both.
    border          what shares pass as where they enter and leave a lane: ``crypten``, its types;
                    ``none``: plain arrays, and lanes load neither CrypTen nor torch. The integers
                    are the same, and the parties need not agree.
    batch           most samples of one request, which clients are told.
    material_bytes  memory for each model's stock of material at party 1, per lane: as many items
                    as fit, but one at least. A batch that needs more has them while it runs. Of a
                    streamed model: as much as an item has, and the dealer's work is done ahead of
                    calls.
    staged          inferences of one sample whose material is kept expanded, per model and lane;
                    party 1 decides for both.
    staged_bytes    memory for expanded material of all models, per lane: besides single samples,
                    one batch of every size that was asked for lately.
    """

    link_protocol: LinkProtocol = "tls"
    border: Border = "crypten"
    batch: int = 64
    material_bytes: int = 64 * 2**20
    staged: int = 3
    staged_bytes: int = 128 * 2**20

    @classmethod
    def of(cls, wider: LaneOptions) -> LaneOptions:
        """These fields alone of a class that has more."""
        return cls(**{each.name: getattr(wider, each.name) for each in fields(cls)})
