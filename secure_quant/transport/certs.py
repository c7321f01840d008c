"""A private certificate authority with one certificate per role, for trying out and for small
installations. ECDSA P-256, SHA-256, RFC 5280."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secure_quant.engines import roles
from secure_quant.errors import ConfigError
from secure_quant.transport.roles import Role

__all__ = ["Authority", "make_all"]

_SKEW = timedelta(minutes=5)  # clocks differ


class Authority:
    """A CA whose key lives as long as this object; keep it only if more certificates will come."""

    def __init__(self, *, days: int = 365) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._until = datetime.now(UTC) + timedelta(days=days)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secure-quant private CA")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._cert = (
            self._draft(name, name, self._key, self._until)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self._cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return _key_pem(self._key)

    def issue(
        self, role: str, *, hosts: Iterable[str] = (), until: datetime | None = None
    ) -> tuple[bytes, bytes]:
        """(certificate, private key) in PEM for ``party0``, ``client/alice``, ...

        A client's certificate cannot be used to serve. ``hosts`` are DNS names and IP addresses.
        Raises ValueOutOfRange for an unknown role.
        """
        who, key = Role.parse(role), ec.generate_private_key(ec.SECP256R1())
        uses, names = [ExtendedKeyUsageOID.CLIENT_AUTH], [_uri(who)]
        if who.kind != "client":
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names += [x509.DNSName(who.dns_name), *map(_host, dict.fromkeys(hosts))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(who)[:64])])
        signer = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        cert = (
            self._draft(subject, self._cert.subject, key, until or self._until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return cert.public_bytes(serialization.Encoding.PEM), _key_pem(key)

    @staticmethod
    def _draft(
        subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime
    ) -> x509.CertificateBuilder:
        start = min(datetime.now(UTC), until) - _SKEW
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(until)
        )


def make_all(
    out: str | os.PathLike[str],
    *,
    hosts: Iterable[str] = (),
    client: str = "demo",
    days: int = 365,
    force: bool = False,
) -> Mapping[str, Path]:
    """``ca.pem``, ``ca.key`` and ``<role>.pem``, ``<role>.key`` for every role in ``out``.

    hosts   DNS names and addresses besides localhost, 127.0.0.1 and ::1.
    client  the name in the client's certificate.
    force   replace files that are there.

    Keys are readable by their owner alone; move each to the one machine that needs it, and
    ``ca.key`` off all of them. Raises ConfigError if a file is there already, ValueOutOfRange.
    """
    base, authority = Path(out), Authority(days=days)
    base.mkdir(parents=True, exist_ok=True)
    every = ["localhost", "127.0.0.1", "::1", *hosts]
    files = {"ca.pem": authority.pem, "ca.key": authority.key_pem}
    for role in (*roles(), "client"):
        name = f"client/{client}" if role == "client" else role
        files[f"{role}.pem"], files[f"{role}.key"] = authority.issue(name, hosts=every)
    there = [name for name in files if (base / name).exists()]
    if there and not force:
        raise ConfigError("certificates", got=f"{base / there[0]} is there", expected="new files")
    for name, data in files.items():
        _write(base / name, data, 0o600 if name.endswith(".key") else 0o644)
    return {name: base / name for name in files}


def _write(path: Path, data: bytes, mode: int) -> None:
    """Never readable by others, not even for a moment."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _uri(role: Role) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(role.uri)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
