"""One host without a dealer: pairings of clients with the one server."""

from secure_quant_server.onehost.serve import OneHostOptions, OneHostServer, serve_onehost

__all__ = ["OneHostOptions", "OneHostServer", "serve_onehost"]
