"""The one host in a process of its own, with certificates for every role."""

from __future__ import annotations

from functools import partial

from e2e import he_server

from secure_quant.onehost.bundle import split

__all__ = ["LastingOneHostProcess", "OneHostProcess", "SilentOneHostProcess"]


class OneHostProcess(he_server.HeServerProcess):
    """Starts on entry, killed on exit. ``options`` go to OneHostOptions."""

    main = he_server._MAIN.replace('"he"', '"onehost"').replace(
        "secure_quant_server.he import HeOptions, serve_he",
        "secure_quant_server.onehost import OneHostOptions as HeOptions, serve_onehost as serve_he",
    )
    split = staticmethod(split)


class SilentOneHostProcess(OneHostProcess):
    """The same with Ferret's OTs."""

    split = staticmethod(partial(split, objective="traffic"))


class LastingOneHostProcess(OneHostProcess):
    """Good for so many samples of a client that its rings have three primes."""

    split = staticmethod(partial(split, calls=2**38))
