"""The homomorphic-encryption server: ciphertexts in, ciphertexts out, no state, no key."""

from secure_quant_server.he.serve import HeOptions, HeServer, serve_he

__all__ = ["HeOptions", "HeServer", "serve_he"]
