"""Secret sharing as services: the two parties and the dealer.

Each role is imported on first use only: a party starts without the dealer, and a lane without
either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secure_quant_server.mpc.dealer import serve_dealer
    from secure_quant_server.mpc.party import PartyOptions, serve_party

__all__ = ["PartyOptions", "serve_dealer", "serve_party"]


def __getattr__(name: str) -> Any:
    if name == "serve_dealer":
        from secure_quant_server.mpc.dealer import serve_dealer

        return serve_dealer
    if name in ("PartyOptions", "serve_party"):
        from secure_quant_server.mpc import party

        return getattr(party, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
