"""What a gateway can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secure_quant.engines import find
from secure_quant.errors import ConfigError
from secure_quant.transport import Limits, Security
from secure_quant_client.gateway.listen import ListenTls, require_private

__all__ = ["GatewayOptions"]


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """engine         by its name; one whose answers are exact.
    targets        ``host:port`` of each server that clients of the engine call.
    security       towards the servers: Tls(...), or InsecurePlaintext() in so many words.
    listen         ``host:port`` of the protocol over gRPC; None for none.
    http_listen    the same over HTTP.
    listen_tls     certificate and key of both; without it they listen on loopback alone.
    models         name for callers -> hash, and "" for the one model that the servers serve.
    token          where the servers ask for one besides the certificate.
    limits         largest message of either side.
    timeout_s      longest request, and of one whose caller states no time; None for what our client
                   gives the model's work.
    batch          most samples joined into one inference; None for what the servers take.
    at_once        inferences of a model that run side by side.
    pending        requests that wait; one more is refused as Overloaded.
    """

    engine: str
    targets: Sequence[str]
    security: Security
    listen: str | None = None
    http_listen: str | None = None
    listen_tls: ListenTls | None = None
    models: Mapping[str, str] = field(default_factory=lambda: {"model": ""})
    token: str | None = None
    limits: Limits = field(default_factory=Limits)
    timeout_s: float | None = None
    batch: int | None = None
    at_once: int = 2
    pending: int = 256

    def check(self) -> None:
        """Raises ConfigError, InsecureRefused for an address that others reach without TLS, and the
        errors of ``ListenTls.load``."""
        if not find(self.engine).exact:
            got, expected = self.engine, "one whose answers are exact"
            raise ConfigError("engine of a gateway", got=got, expected=expected)
        if self.listen is None and self.http_listen is None:
            raise ConfigError("listen, http_listen", got="neither", expected="one of them")
        if not self.models:
            raise ConfigError("models", got="none", expected="a name at least")
        for name in ("batch", "at_once", "pending", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(name, got=value, expected="> 0")
        if self.listen_tls is not None:
            self.listen_tls.load()
        for setting in ("listen", "http_listen"):
            address = getattr(self, setting)
            if address is not None and self.listen_tls is None:
                require_private(setting, address)
