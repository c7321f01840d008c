"""Prometheus metrics of one server process, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from secure_quant.errors import ConfigError

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """``registry`` takes an engine's own metrics too. No label is what a caller chose freely."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "secure_quant_calls", "Finished calls", ["method", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "secure_quant_call_seconds", "Time in a call", ["method"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.running = Gauge(
            "secure_quant_calls_running", "Calls being served", registry=self.registry
        )

    def listen(self, address: str) -> None:
        """Answer ``GET /metrics`` on ``host:port`` in a thread of its own, in plain HTTP. Raises
        ConfigError."""
        host, _, port = address.rpartition(":")
        try:
            start_http_server(int(port), host.strip("[]") or "127.0.0.1", self.registry)
        except (ValueError, OSError) as error:
            raise ConfigError("metrics", got=address, expected="a free host:port") from error
