"""What each role can be told: every option once, with what it means and its default.

Programs pass these dataclasses. The command line's flags, the keys of its TOML file and the names
of its environment variables are made from their fields, and its help from their docstrings. Light:
nothing that serves is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from secure_quant.errors import ConfigError
from secure_quant.mpc.runtime.options import LaneOptions

if TYPE_CHECKING:
    from secure_quant.transport import Limits, Security

__all__ = ["CHOICES", "DealerOptions", "HeOptions", "OneHostOptions", "PartyOptions",
           "ServerOptions"]  # fmt: skip

CHOICES = {
    name: get_args(kind)
    for name, kind in get_type_hints(LaneOptions).items()
    if get_origin(kind) is Literal
}
"""Fields of PartyOptions that are one of a few words."""


def _limits() -> Limits:
    from secure_quant.transport import Limits  # brings gRPC

    return Limits()


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What every server asks.

    listen           ``host:port``; port 0 lets the system choose.
    security         Tls(...), or InsecurePlaintext() in so many words.
    limits           largest message, keepalive.
    max_calls        calls served at once; one more is refused as Overloaded. Health and reflection
                     do not count; they have bounds of their own.
    per_client       calls of one client at once.
    max_connections  connections at once, those whose handshake is under way included; one more is
                     closed. Below what the process may open in files.
    tokens           file of client tokens (NAME SHA256 a line), asked of clients besides their
                     certificate.
    budget           samples each client may send in a window of time; None for no limit.
    budget_window_s  that window.
    budget_store     file with the URL of a Redis in which replicas keep one budget together,
                     ``rediss://USER:PASSWORD@HOST:6379/0``; None counts in this process alone.
    budget_alone     while that Redis is away, count in this process; otherwise calls that a budget
                     bounds are refused then.
    metrics          ``host:port`` for Prometheus, plain HTTP, or a port of loopback; None for none.
    traces           a collector of OpenTelemetry for spans, ``http://host:4317`` (OTLP over gRPC);
                     None for none.
    reflection       let certified callers list the services.
    watch_s          longest call to health or reflection, a stream that idles included.
    grace_s          time that running calls have to end after a stop signal.
    """

    listen: str
    security: Security
    limits: Limits = field(default_factory=_limits)
    max_calls: int = 256
    per_client: int = 64
    max_connections: int = 512
    tokens: str | os.PathLike[str] | None = None
    budget: int | None = None
    budget_window_s: float = 3600.0
    budget_store: str | os.PathLike[str] | None = None
    budget_alone: bool = False
    metrics: str | None = None
    traces: str | None = None
    reflection: bool = True
    watch_s: float = 600.0
    grace_s: float = 5.0


@dataclass(frozen=True, kw_only=True)
class PartyOptions(LaneOptions, ServerOptions):
    """A server's options, those of each lane, and a party's own.

    party           which one the bundles must be of; None takes what they say.
    link            party 0: where party 1's link listens; party 1: where to listen. Lane n uses
                    the port n above.
    dealer          ``host:port``.
    lanes           inferences that run side by side, one worker process each.
    worker_memory   address space of each worker process in bytes; None for no limit.
    wait_s          longest wait for a client's other share.
    batch_wait_s    party 0: longest wait for other requests to join while every lane is busy; 0
                    joins none.
    pending         requests that may wait at once.
    http_listen     ``host:port`` for browsers: the same service over HTTPS; None for none. Asks
                    for tokens.
    http_origins    whose pages may call there, comma-separated (``https://app.example``); ``*``
                    for those of every origin.
    http_cert       certificate chain shown there; None for the role's own.
    http_key        its private key.
    http_plaintext  no TLS there, on an address of loopback only: behind a proxy on this host that
                    ends it, or to try out.
    """

    party: int | None = None
    link: str
    dealer: str
    lanes: int = 1
    worker_memory: int | None = None
    wait_s: float = 10.0
    batch_wait_s: float = 0.0
    pending: int = 256
    http_listen: str | None = None
    http_origins: str | None = None
    http_cert: str | os.PathLike[str] | None = None
    http_key: str | os.PathLike[str] | None = None
    http_plaintext: bool = False

    def __post_init__(self) -> None:
        if (self.http_cert is None) != (self.http_key is None):
            raise ConfigError("http_cert and http_key", got="one of them", expected="both or none")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                expected = " or ".join(choices)
                raise ConfigError(name, got=getattr(self, name), expected=expected)
        for name in ("lanes", "batch", "material_bytes", "staged", "staged_bytes", "wait_s",
                     "pending", "per_client", "max_connections"):  # fmt: skip
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(name, got=getattr(self, name), expected="> 0")
        if not 0 <= self.batch_wait_s <= self.wait_s:
            raise ConfigError("batch_wait_s", got=self.batch_wait_s, expected="0 to wait_s")


@dataclass(frozen=True, kw_only=True)
class DealerOptions(ServerOptions):
    """A server's options, and a dealer's own.

    stock_bytes  memory for each model's finished items.
    workers      threads that make them.
    spool        folder for finished items beyond that, of this dealer alone; none by default.
    spool_bytes  bytes of files in it, shared out evenly among the models.
    """

    stock_bytes: int = 256 * 2**20
    workers: int = 1
    spool: str | os.PathLike[str] | None = None
    spool_bytes: int = 2**32

    def __post_init__(self) -> None:
        for name in ("stock_bytes", "workers", "spool_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, got=getattr(self, name), expected="> 0")


@dataclass(frozen=True, kw_only=True)
class HeOptions(ServerOptions):
    """bundles: one server bundle per model, paths or bytes.

    workers        evaluation processes; None for one per core. 0 evaluates in the server's process:
                   a malformed request that crashes the engine then ends the server. Leveled models
                   always have a process of their own at least.
    worker_memory  address space of each evaluation process in bytes; None for no limit but that of
                   leveled models' processes, 6 GiB.
    evaluate_s     longest evaluation of one layer, or of one sample by a leveled model.
    """

    bundles: Sequence[str | os.PathLike[str] | bytes] = field(repr=False)
    workers: int | None = None
    worker_memory: int | None = None
    evaluate_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class OneHostOptions(ServerOptions):
    """bundles: one server bundle per model, paths or bytes. The budget is paid when an item of
    material is made, which serves one inference; pairings count against one of the same size.

    workers              threads that make items ahead at once; None for one per core.
    stock                samples for which one pairing may hold items.
    pairings             at once, of all clients; each holds its stock and two threads.
    pairings_per_client  of one client.
    step_s               longest wait for a client's next message of what is under way.
    idle_s               time after which a pairing that says nothing ends, with its items.
    ledger               file that counts the samples each client was served, across restarts; a
                         plan is good for so many and no more. None counts in memory.
    """

    bundles: Sequence[str | os.PathLike[str] | bytes] = field(repr=False)
    workers: int | None = None
    stock: int = 8
    pairings: int = 64
    pairings_per_client: int = 8
    step_s: float = 30.0
    idle_s: float = 900.0
    ledger: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "stock", "pairings", "pairings_per_client", "step_s", "idle_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(name, got=value, expected="> 0")
