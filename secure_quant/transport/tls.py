"""What a connection is secured with: mutual TLS, or plaintext by an explicit choice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from secure_quant.errors import (
    CertificateExpired,
    CertificateMismatch,
    CertificateMissing,
    InsecureRefused,
    SecureQuantError,
    Unauthenticated,
)
from secure_quant.transport.roles import Role, role_of

__all__ = [
    "Credentials",
    "InsecurePlaintext",
    "Security",
    "ServerPair",
    "Tls",
    "check_security",
    "own_chain",
    "own_role",
    "require_role",
]

Source = str | os.PathLike[str] | bytes
"""A path, or the PEM bytes themselves."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM bytes that were checked to belong together."""

    ca: bytes
    cert: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """Mutual TLS: the authorities to trust, and one's own certificate chain and private key.

    ca, cert, key  a path, or PEM bytes.
    server_name    the name expected in a server's certificate. By default it is the name of the
                   role the caller asks for (see ``roles``); for certificates without role names
                   give the host name here.
    """

    ca: Source = field(repr=False)
    cert: Source = field(repr=False)
    key: Source = field(repr=False)
    server_name: str | None = None

    @classmethod
    def from_dir(cls, directory: str | os.PathLike[str], role: str) -> Tls:
        """``ca.pem``, ``<role>.pem`` and ``<role>.key`` in a directory that ``certs`` made."""
        base = Path(directory)
        return cls(ca=base / "ca.pem", cert=base / f"{role}.pem", key=base / f"{role}.key")

    def load(self) -> Credentials:
        """Read and check. Raises CertificateMissing, CertificateExpired, CertificateMismatch."""
        ca = _read("ca", self.ca)
        cert, key = own_chain(self.cert, self.key)
        authorities, chain = _parse("ca", ca), _parse("cert", cert)
        with _readable():
            _check_issuer(chain[-1], authorities)
            for each in (*chain, *authorities):  # which the warnings ahead of it look at
                _ = each.not_valid_after_utc
        return Credentials(ca, cert, key)

    def stamp(self) -> object:
        """Compares equal as long as no file has changed."""
        return tuple(_stamp(source) for source in (self.ca, self.cert, self.key))


def own_chain(cert: Source, key: Source) -> tuple[bytes, bytes]:
    """Both files' bytes: a chain that is valid now, and its key. Raises CertificateMissing,
    CertificateExpired, CertificateMismatch."""
    pem, private = _read("cert", cert), _read("key", key)
    chain = _parse("cert", pem)
    with _readable():
        _check_key(chain[0], private)
        _check_period("certificate", chain[0])
    return pem, private


@dataclass(frozen=True, slots=True)
class ServerPair:
    """A certificate chain and its private key alone, of whatever authority: of a server whose
    callers are known by a token. Paths, or PEM bytes."""

    cert: Source = field(repr=False)
    key: Source = field(repr=False)

    def load(self) -> Credentials:
        """Read and check; ``ca`` is empty. Raises CertificateMissing, CertificateExpired,
        CertificateMismatch."""
        return Credentials(b"", *own_chain(self.cert, self.key))

    def stamp(self) -> object:
        """Compares equal as long as no file has changed."""
        return tuple(_stamp(source) for source in (self.cert, self.key))


def own_role(credentials: Credentials) -> Role:
    """The role that one's own certificate names. Raises CertificateMismatch for none or several."""
    (leaf, *_) = _parse("cert", credentials.cert)
    try:
        with _readable():
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return role_of(names.get_values_for_type(x509.UniformResourceIdentifier))
    except (x509.ExtensionNotFound, Unauthenticated) as error:
        expected = "a certificate with one role"
        raise CertificateMismatch("certificate", got="another", expected=expected) from error


def require_role(security: Security, kind: str) -> None:
    """One's own certificate is of ``kind``; also true of plaintext. Raises CertificateMismatch and
    the errors of ``Tls.load``."""
    if isinstance(security, InsecurePlaintext):
        return
    role = own_role(security.load())
    if role.kind != kind:
        raise CertificateMismatch("certificate", got=f"one of {role}", expected=f"one of {kind}")


@dataclass(frozen=True, slots=True)
class InsecurePlaintext:
    """No encryption and no authentication: for tests and for links another layer protects.

    Whoever can reach the port may call every method, and whoever sees both parties' traffic sees
    the inputs.
    """


Security = Tls | InsecurePlaintext


def check_security(security: object) -> Security:
    """``security`` itself, if it is one. Raises InsecureRefused for None and the like."""
    if isinstance(security, Tls | InsecurePlaintext):
        return security
    raise InsecureRefused(
        "connection security",
        got=type(security).__name__,
        expected="Tls(...)",
        hint="InsecurePlaintext() sends everything readable by anyone on the way",
    )


def _read(name: str, source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise CertificateMissing(name, got=error.strerror, expected=f"a file {source}") from error


def _stamp(source: Source) -> object:
    if isinstance(source, bytes):
        return source
    try:
        found = Path(source).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _parse(name: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateMissing(name, expected="PEM certificates") from error


@contextmanager
def _readable() -> Iterator[None]:
    """The parts of a certificate are parsed when they are looked at."""
    try:
        yield
    except SecureQuantError:
        raise
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise CertificateMissing("cert", expected="a certificate that can be read") from error


def _check_key(leaf: x509.Certificate, pem: bytes) -> None:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateMissing("key", expected="a PEM private key without password") from error
    if key.public_key() != leaf.public_key():
        raise CertificateMismatch("private key", expected="the key of the certificate")


def _check_period(what: str, cert: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if not cert.not_valid_before_utc <= now <= cert.not_valid_after_utc:
        period = f"{cert.not_valid_before_utc:%F %T} to {cert.not_valid_after_utc:%F %T} UTC"
        raise CertificateExpired(what, got=f"{now:%F %T} UTC", expected=f"a time from {period}")


def _check_issuer(last: x509.Certificate, authorities: list[x509.Certificate]) -> None:
    for authority in authorities:
        try:
            last.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return _check_period("authority", authority)
    raise CertificateMismatch(
        "issuer", got=last.issuer.rfc4514_string(), expected="one of the authorities in ca"
    )
