"""Prometheus metrics of one server process, in a registry of its own."""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import HTTPServer, ThreadingHTTPServer
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    MetricsHandler,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from secure_quant.errors import ConfigError

__all__ = ["SECONDS", "Metrics", "Workers"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
AT_ONCE = 4
LONGEST_S = 5.0


class Metrics:
    """``registry`` takes an engine's own metrics too. No label is what a caller chose freely."""

    def __init__(self, role: str | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Gauge(
            "secure_quant_build_info", "1, with what runs here", ["version", "role", "python"],
            registry=self.registry,
        )  # fmt: skip
        build.labels(_version(), role or "", platform.python_version()).set(1)
        self._ended: dict[tuple[str, str], tuple[Histogram, Counter]] = {}
        self.calls = Counter(
            "secure_quant_calls", "Finished calls", ["method", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "secure_quant_call_seconds", "Time in a call", ["method"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.running = Gauge(
            "secure_quant_calls_running", "Calls being served", registry=self.registry
        )
        self.expiry = Gauge(
            "secure_quant_certificate_expiry_seconds", "Unix time at which the certificate ends",
            registry=self.registry,
        )  # fmt: skip

    def ended(self, method: str, code: str, seconds: float) -> None:
        """Count a call. Both names come from short lists of ours: children are kept."""
        found = self._ended.get((method, code))
        if found is None:
            found = self.seconds.labels(method), self.calls.labels(method, code)
            self._ended[method, code] = found
        found[0].observe(seconds)
        found[1].inc()

    def listen(self, address: str) -> HTTPServer:
        """Answer ``GET /metrics`` on ``host:port``, or on a loopback ``port``, in plain HTTP and
        threads of its own. Raises ConfigError."""
        host, _, port = address.rpartition(":")
        registry = self.registry

        class Handler(MetricsHandler):
            timeout = LONGEST_S

        Handler.registry = registry
        try:
            server = _Bounded((host.strip("[]") or "127.0.0.1", int(port)), Handler)
        except (ValueError, OSError, OverflowError) as error:
            raise ConfigError("metrics", got=address, expected="a free host:port") from error
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return server


def _version() -> str:
    """Of the code that runs: what an installer noted may be older. The package is loaded already;
    its door, which servers do not import by name, leads to rooms that are not theirs."""
    version: str = sys.modules["secure_quant"].__version__
    return version


class Workers(Collector):
    """The worker processes of a front, looked at when somebody scrapes, in a thread of its own.

    configured  how many there are to be. ready: how many are of use now. pids: of those that live.
    restarts    how many were started in the place of another.
    waiting     requests that are here and not answered.
    """

    def __init__(
        self,
        *,
        configured: int,
        ready: Callable[[], int],
        pids: Callable[[], Iterable[int]],
        restarts: Callable[[], int],
        waiting: Callable[[], int],
    ) -> None:
        self._configured, self._ready, self._pids = configured, ready, pids
        self._restarts, self._waiting = restarts, waiting

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        memory = sum(map(_resident, self._pids()))
        for name, text, value in (
            ("workers_configured", "Worker processes that there are to be", self._configured),
            ("workers_ready", "Worker processes that are of use", self._ready()),
            ("workers_resident_bytes", "Their resident memory, shared pages in each", memory),
            ("requests_waiting", "Requests that wait or run", self._waiting()),
        ):
            yield GaugeMetricFamily(f"secure_quant_{name}", text, value=value)
        yield CounterMetricFamily(
            "secure_quant_worker_restarts", "Workers started in place of another",
            value=self._restarts(),
        )  # fmt: skip


def _resident(pid: int) -> int:
    """Bytes; 0 for a process that has gone. See proc(5), ``statm``."""
    try:
        with open(f"/proc/{pid}/statm") as statm:  # noqa: PTH123  a scrape does it for each worker
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class _Bounded(ThreadingHTTPServer):
    """``AT_ONCE`` connections, each for a few seconds; one more is closed unanswered."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[MetricsHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._room = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """One connection."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In its own thread. A peer that sends a byte now and then is cut off as well."""
        end = threading.Timer(LONGEST_S, _cut, (request,))
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away is nothing to tell of."""


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended
