"""Query budgets that replicas share: their buckets lie in a Redis of the operator's.

A bucket is that of ``budgets``, to the formula, on Redis's own clock, and is read and written in
one script, so that no two replicas take the same samples. docs/adr/0038-shared-budgets.md says why
the script is ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Hashable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import prometheus_client as prometheus

from secure_quant.errors import ConfigError, InsecureRefused, PeerUnavailable
from secure_quant_server.common import logs
from secure_quant_server.common.access import file_stamp
from secure_quant_server.common.budgets import Budgets
from secure_quant_server.common.metrics import Metrics
from secure_quant_server.options import ServerOptions

__all__ = ["SharedBudgets", "budgets_of", "store_url", "up_gauge", "why_away"]

ANSWER_S = 2.0
"""In which the store answers, or is away."""
PAUSE_S = 1.0
"""After that, in which it is not asked: calls do not queue for what is not there."""
CONNECTIONS = 16
PREFIX = "secure-quant:budget:"
FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
"""What may stand in the URL's query: nothing that weakens TLS."""

_TAKE = """
local at = redis.call('TIME')
local now = tonumber(at[1]) + tonumber(at[2]) / 1e6
local most, window, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'left', 'since')
local left = most
if kept[1] and kept[2] then
  local gained = math.max(0, now - tonumber(kept[2])) * most / window
  left = math.min(most, tonumber(kept[1]) + gained)
end
local enough = wanted <= left
if enough then left = left - wanted end
redis.call('HSET', KEYS[1], 'left', string.format('%.17g', left),
           'since', string.format('%.17g', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(window * 1000))
return {enough and 1 or 0, math.floor(left)}
"""
"""Take ARGV[3] samples from the bucket KEYS[1] of ARGV[1] samples, which refills over ARGV[2]
seconds; in the end it is full, and forgotten. Returns {1 or 0, what is left}."""


def budgets_of(options: ServerOptions, role: str, metrics: Metrics) -> Budgets:
    """What the options say: shared if they name a store. role: replicas of one share, and of two
    do not. Raises ConfigError, InsecureRefused."""
    if options.budget_store is None:
        return Budgets(options.budget, options.budget_window_s)
    if options.budget is None:
        raise ConfigError("budget_store", got="no budget", expected="a budget to keep in it")
    return SharedBudgets(
        options.budget, options.budget_window_s,
        store=options.budget_store, alone=options.budget_alone, role=role, metrics=metrics,
    )  # fmt: skip


def up_gauge(metrics: Metrics) -> prometheus.Gauge:
    """What tells whether the store answers."""
    return prometheus.Gauge(
        "secure_quant_budget_store_up", "1 while shared budgets can be charged",
        registry=metrics.registry,
    )  # fmt: skip


def store_url(path: str | os.PathLike[str]) -> str:
    """What the file holds: one URL of a Redis, over TLS, on loopback or at a Unix socket.

    No error quotes it: it holds a password. Raises ConfigError, InsecureRefused.
    """
    try:
        url = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError("file of budget_store", got=path, expected="a text file") from None
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        asked = parse_qsl(parts.query, strict_parsing=True) if parts.query else []
    except ValueError:
        raise _not_a_url(path) from None
    fits = {"rediss": host, "redis": host, "unix": parts.path}.get(parts.scheme)
    allowed = {"rediss": FILES, "unix": {"db"}}.get(parts.scheme, set())
    if not fits or not url.isprintable() or any(name not in allowed for name, _ in asked):
        raise _not_a_url(path)
    if parts.scheme == "redis" and not _loopback(host or ""):
        raise InsecureRefused(
            "budget_store", got="redis: beyond loopback", expected="rediss:",
            hint="its password, and who asked how much, would cross the network as they are",
        )  # fmt: skip
    return url


def _not_a_url(path: object) -> ConfigError:
    expected = "one URL, rediss://USER:PASSWORD@HOST:PORT/DB, with at most ssl_ca_certs, "
    return ConfigError(
        "file of budget_store", got=path, expected=f"{expected}ssl_certfile and ssl_keyfile"
    )


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class SharedBudgets(Budgets):
    """store: file with the URL; one that is replaced counts from the next call on.

    alone: while the store is away, count here, as if there were none; else calls are refused.
    """

    def __init__(
        self,
        samples: int,
        window_s: float,
        *,
        store: str | os.PathLike[str],
        alone: bool,
        role: str,
        metrics: Metrics,
    ) -> None:
        """Raises ConfigError, InsecureRefused; ModuleNotFoundError without the extra `budgets`."""
        super().__init__(samples, window_s)
        self._path, self._stamp, self._url = Path(store), file_stamp(Path(store)), store_url(store)
        self._alone, self._role = alone, role
        self._client = _connect(self._url)
        self._former: Any = None
        self._away_until: float | None = None
        self._up = up_gauge(metrics)
        self._up.set(1)

    async def pay(self, client: str, scope: Hashable, amount: int) -> None:
        """See Budgets. Raises PeerUnavailable too."""
        await self._follow()
        answer = await self._ask(client, scope, amount)
        if answer is not None:
            enough, left = answer
            if not enough:
                raise self.exceeded(amount, left)
        elif self._alone:
            self.charge(client, scope, amount)
        else:
            raise PeerUnavailable(
                "the store of query budgets", hint="nothing was computed; the operator must mend it"
            )

    async def close(self) -> None:
        """Its connections."""
        await _close(self._client)
        await _close(self._former)

    async def _ask(self, client: str, scope: Hashable, amount: int) -> tuple[int, int] | None:
        """(1 if the samples were taken, samples left), or None while the store is away."""
        if self._away_until is not None:
            now = time.monotonic()
            if now < self._away_until:
                return None
            self._away_until = now + ANSWER_S  # one call finds out, the others do not wait for it
        key = self._key(client, scope)
        try:
            answer = await _take(self._client, key, self._samples, self._window, amount)
        except _failures() as error:
            self._lost(error)
            return None
        if self._away_until is not None:
            self._away_until = None
            self._up.set(1)
            logs.event("budget store back")
        return answer

    def _key(self, client: str, scope: Hashable) -> str:
        """Names of clients and models do not stand in the store."""
        said = repr((self._role, client, scope)).encode()
        return PREFIX + hashlib.sha256(said).hexdigest()

    def _lost(self, error: Exception) -> None:
        if self._away_until is None:
            self._up.set(0)
            # Not its text, which is the store's or a library's: the URL has a password.
            logs.event(
                "budget store away", level=logging.ERROR, reason=_reason(error),
                consequence="this process counts alone" if self._alone else "calls are refused",
            )  # fmt: skip
        self._away_until = time.monotonic() + PAUSE_S

    async def _follow(self) -> None:
        stamp = file_stamp(self._path)
        if stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._url = store_url(self._path)
        except (ConfigError, InsecureRefused) as error:
            logs.event("budget store not taken", level=logging.WARNING, reason=str(error))
            return
        # Calls under way still use the one before.
        former, self._former, self._client = self._former, self._client, _connect(self._url)
        self._away_until = None if self._away_until is None else 0.0
        logs.event("budget store taken")
        await _close(former)


async def why_away(store: str | os.PathLike[str]) -> str | None:
    """Why budgets cannot be charged in the store of that file, or None if they can.

    Raises ConfigError, InsecureRefused.
    """
    client = _connect(store_url(store))
    try:
        await _take(client, f"{PREFIX}asked-by-doctor", 1, 1.0, 0)
    except _failures() as error:
        return _reason(error)
    finally:
        await _close(client)
    return None


async def _take(
    client: Any, key: str, samples: int | None, window_s: float, amount: int
) -> tuple[int, int]:
    """(1 if they were taken, samples left). Raises what ``_failures`` has."""
    async with asyncio.timeout(ANSWER_S):
        enough, left = await client.eval(
            _TAKE, 1, key, str(samples), repr(float(window_s)), str(amount)
        )
    return int(enough), int(left)


def _failures() -> tuple[type[Exception], ...]:
    import redis

    return redis.RedisError, OSError, TimeoutError, ValueError


def _connect(url: str) -> Any:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as Lost

    secure = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    pool = BlockingConnectionPool.from_url(
        url, max_connections=CONNECTIONS, timeout=ANSWER_S, socket_timeout=ANSWER_S,
        # One that broke while it was idle, once; what timed out may have been charged.
        retry=Retry(NoBackoff(), 1, supported_errors=(Lost,)),
        **(secure if url.startswith("rediss:") else {}),
    )  # fmt: skip
    return Redis(connection_pool=pool)


async def _close(client: Any) -> None:
    if client is None:
        return
    with suppress(Exception):  # of what is away already
        await client.aclose()
        await client.connection_pool.disconnect()


def _reason(error: BaseException) -> str:
    """The kinds of an error and of what caused it, and the first word of Redis's reply (NOAUTH,
    NOPERM, OOM, ...)."""
    kinds = [type(error).__name__]
    word = str(error).partition(" ")[0]
    if word.isascii() and word.isalpha() and word.isupper():
        kinds[0] += f" {word}"
    while (error_ := error.__cause__ or error.__context__) is not None and len(kinds) < 4:
        error = error_
        kinds.append(type(error).__name__)
    return " from ".join(kinds)
