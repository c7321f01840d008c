"""Where a gateway listens: loopback, or anywhere over TLS. Its port carries inputs and answers in
the clear, so whoever else can reach it must find it encrypted."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc

from secure_quant.errors import CertificateMissing, ConfigError, InsecureRefused, SecureQuantError
from secure_quant.transport.tls import own_chain
from secure_quant_client.gateway import events

__all__ = ["ListenTls", "host_of", "require_private"]

LOOK_S = 10.0


def host_of(setting: str, address: str) -> tuple[str, int]:
    """``host:port``, IPv6 in brackets; localhost is 127.0.0.1. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError(setting, got=ascii(address[:80]), expected="HOST:PORT")
    name = host.strip("[]")
    return ("127.0.0.1" if name == "localhost" else name), int(port)


def require_private(setting: str, address: str) -> None:
    """Raises InsecureRefused unless nobody but this machine reaches it."""
    host, _ = host_of(setting, address)
    try:
        private = ip_address(host).is_loopback
    except ValueError:  # a name: who knows where it leads tomorrow
        private = False
    if not private:
        raise InsecureRefused(
            setting, got=address, expected="an address of loopback, or a certificate of its own",
            hint="inputs and answers cross this port as they are",
        )  # fmt: skip


@dataclass(frozen=True)
class ListenTls:
    """PEM files: the chain that callers are shown, its private key, and, where callers must show a
    certificate too, who signs theirs. Files that are replaced count from then on."""

    cert: Path
    key: Path
    ca: Path | None = None

    def load(self) -> tuple[bytes, bytes, bytes | None]:
        """cert, key, ca. Raises CertificateMissing, CertificateExpired, CertificateMismatch."""
        cert, key = own_chain(self.cert, self.key)
        if self.ca is None:
            return cert, key, None
        try:
            return cert, key, self.ca.read_bytes()
        except OSError as error:
            expected = f"a file {self.ca}"
            raise CertificateMissing("ca", got=error.strerror, expected=expected) from error

    def stamp(self) -> object:
        """Compares equal as long as no file has changed."""
        found = []
        for path in (self.cert, self.key, self.ca):
            try:
                status = None if path is None else path.stat()
            except OSError:
                status = None
            found.append(status and (status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)

    def for_grpc(self) -> grpc.ServerCredentials:
        """Raises as ``load``."""
        last = self.stamp()

        def configured() -> grpc.ServerCertificateConfiguration:
            cert, key, ca = self.load()
            return grpc.ssl_server_certificate_configuration([(key, cert)], ca)

        def look() -> grpc.ServerCertificateConfiguration | None:
            nonlocal last
            if (now := self.stamp()) == last:
                return None
            last = now
            try:
                return configured()
            except SecureQuantError as error:  # half of it is there: the old one serves on
                events.event("certificate unusable", reason=str(error))
                return None

        return grpc.dynamic_ssl_server_credentials(
            configured(),
            look,  # type: ignore[arg-type]  # the stubs forget that None means no change
            require_client_authentication=self.ca is not None,
        )

    def for_http(self) -> ssl.SSLContext:
        """Raises as ``load``; ``follow`` keeps it current."""
        self.load()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._into(context)
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def follow(self, context: ssl.SSLContext) -> None:
        """For ever: new connections get what the files hold now."""
        last = self.stamp()
        while True:
            await asyncio.sleep(LOOK_S)
            if (now := self.stamp()) == last:
                continue
            last = now
            try:
                self.load()
                self._into(context)
            except SecureQuantError as error:
                events.event("certificate unusable", reason=str(error))

    def _into(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.cert, self.key)
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise CertificateMissing("ca", expected="PEM files that can be read") from error
