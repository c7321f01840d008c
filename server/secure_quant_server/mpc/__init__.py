"""Secret sharing as services: the two parties and the dealer."""

from secure_quant_server.mpc.dealer import serve_dealer
from secure_quant_server.mpc.party import PartyOptions, serve_party

__all__ = ["PartyOptions", "serve_dealer", "serve_party"]
