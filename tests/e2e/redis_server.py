"""A real Redis, Debian's, for tests of budgets that replicas share."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from patience import ample

from secure_quant_cli.cluster import free_ports

__all__ = ["BINARY", "DEFAULT", "PASSWORD", "RULES", "USER", "RedisServer"]

BINARY = shutil.which("redis-server")
USER, PASSWORD = "replicas", "Marker5-very:secret/word"
ESCAPED = "Marker5-very%3Asecret%2Fword"
RULES = "~secure-quant:* +eval +time +hmget +hset +pexpire"
"""What docs/operating.md says that the user needs: no more is allowed here."""
DEFAULT = "user default off ~* &* +@all"
"""Nobody logs in as it, but Redis 7 reads its own log of changes as this user: without its rights a
restart forgets what was spent."""


class RedisServer:
    """certs: of ``make_all``; then it speaks TLS alone. Starts on entry, killed on exit."""

    def __init__(self, folder: Path, certs: Path | None = None) -> None:
        (self._port,) = free_ports(1)
        self._folder, self._certs = folder, certs
        folder.mkdir(exist_ok=True)
        name = "rediss" if certs else "redis"
        self.url = f"{name}://{USER}:{ESCAPED}@127.0.0.1:{self._port}/0"
        if certs:
            self.url += f"?ssl_ca_certs={certs / 'ca.pem'}"
        self.file = folder / "store"
        self.file.write_text(f"{self.url}\n")

    def __enter__(self) -> RedisServer:
        port, tls = str(self._port), []
        if self._certs is not None:
            tls = ["--tls-port", port, "--tls-auth-clients", "no",
                   "--tls-cert-file", self._certs / "he.pem",
                   "--tls-key-file", self._certs / "he.key",
                   "--tls-ca-cert-file", self._certs / "ca.pem"]  # fmt: skip
            port = "0"
        rules = f"user {USER} on >{PASSWORD} {RULES}"
        (self._folder / "users.acl").write_text(f"{DEFAULT}\n{rules}\n")
        assert BINARY is not None
        self.process = subprocess.Popen(
            [BINARY, "--port", port, *tls, "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "yes", "--appendfsync", "always", "--dir", self._folder,
             "--aclfile", self._folder / "users.acl", "--logfile", self._folder / "redis.log"],
        )  # fmt: skip
        self.until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(ample(10))

    def until_ready(self) -> None:
        end, log = time.monotonic() + ample(10), self._folder / "redis.log"
        while self.process.poll() is None and time.monotonic() < end:
            if log.exists() and log.read_text().count("Ready to accept") >= self._starts():
                return
            time.sleep(0.02)
        raise AssertionError(log.read_text() if log.exists() else "no Redis")

    def _starts(self) -> int:
        return (self._folder / "redis.log").read_text().count("Redis is starting")
