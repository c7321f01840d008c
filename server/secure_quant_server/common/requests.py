"""What requests that compute cost, by engine and model: an inference under secret sharing, a layer
under homomorphic encryption, a leveled model's samples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Histogram

from secure_quant.errors import SecureQuantError
from secure_quant.wire import to_status
from secure_quant_server.common.metrics import SECONDS, Metrics

__all__ = ["Cost", "Requests"]

SAMPLES = (1, 2, 4, 8, 16, 32, 64)
SHOWN = 12
"""Digits of a model's hash in its label."""


class Cost:
    """Of one request, in bytes of payload. up, down: from and to its client. online: to the other
    party. offline: of dealt material. rounds: exchanges with the other party."""

    __slots__ = ("down", "offline", "online", "rounds", "up")

    def __init__(self) -> None:
        self.up = self.down = self.online = self.offline = self.rounds = 0


class _Of:
    """The children of one engine and model."""

    def __init__(self, requests: Requests, engine: str, model: str) -> None:
        labels = (engine, model[:SHOWN])
        self.seconds = requests.seconds.labels(*labels)
        self.samples = requests.samples.labels(*labels)
        self.costs = {
            name: counter.labels(*labels) for name, counter in requests.costs.items()
        }  # fmt: skip


class Requests:
    """Use ``served`` once it is known that the model is one that is served here: its hash becomes
    a label."""

    def __init__(self, metrics: Metrics) -> None:
        registry, labels = metrics.registry, ["engine", "model"]
        self.seconds = Histogram(
            "secure_quant_request_seconds", "Time in a request that computes, waiting included",
            labels, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.samples = Histogram(
            "secure_quant_request_samples", "Samples of a request", labels, buckets=SAMPLES,
            registry=registry,
        )  # fmt: skip
        self.failures = Counter(
            "secure_quant_request_failures", "Requests that were not answered", [*labels, "code"],
            registry=registry,
        )  # fmt: skip
        told = {
            "up": ("secure_quant_up_bytes", "Payload that clients sent"),
            "down": ("secure_quant_down_bytes", "Payload that clients were sent"),
            "online": ("secure_quant_online_bytes", "Payload sent to the other party"),
            "offline": ("secure_quant_offline_bytes", "Dealt material consumed"),
            "rounds": ("secure_quant_rounds", "Exchanges with the other party"),
        }
        self.costs = {
            key: Counter(name, text, labels, registry=registry)
            for key, (name, text) in told.items()
        }
        self._of: dict[tuple[str, str], _Of] = {}

    @contextmanager
    def served(self, engine: str, model: str, samples: int) -> Iterator[Cost]:
        """Around a request; what it adds to the cost counts once it was answered."""
        cost, started = Cost(), time.perf_counter()
        try:
            yield cost
        except BaseException as error:
            self.failures.labels(engine, model[:SHOWN], _code(error)).inc()
            raise
        self.answered(engine, model, samples, time.perf_counter() - started, cost)

    def answered(self, engine: str, model: str, samples: int, seconds: float, cost: Cost) -> None:
        """Count a request that was. In any thread."""
        of = self._of.get((engine, model))
        if of is None:
            of = self._of[engine, model] = _Of(self, engine, model)
        of.seconds.observe(seconds)
        of.samples.observe(samples)
        for name, counter in of.costs.items():
            counter.inc(getattr(cost, name))


def _code(error: BaseException) -> str:
    """As its caller sees it."""
    if isinstance(error, SecureQuantError):
        return to_status(error)[0].name
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"
