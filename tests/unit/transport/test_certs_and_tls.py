"""Certificates, their checks, and who is who."""

import ssl
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from secure_quant.errors import (
    CertificateExpired,
    CertificateMismatch,
    CertificateMissing,
    ConfigError,
    InsecureRefused,
    Unauthenticated,
    ValueOutOfRange,
)
from secure_quant.transport import (
    InsecurePlaintext,
    Role,
    Tls,
    check_security,
    expiry,
    own_role,
    peer_role,
)
from secure_quant.transport.certs import Authority, make_all


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certs")
    make_all(out, hosts=["he.example.org", "192.0.2.7"], client="alice")
    return out


def names_of(path: Path) -> x509.SubjectAlternativeName:
    cert = x509.load_pem_x509_certificate(path.read_bytes())
    return cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.parametrize("role", ["party0", "party1", "dealer", "he", "client"])
def test_every_role_loads_and_is_named(made: Path, role: str) -> None:
    loaded = Tls.from_dir(made, role).load()
    assert loaded.ca == (made / "ca.pem").read_bytes()
    uris = names_of(made / f"{role}.pem").get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == [f"secure-quant:role/{'client/alice' if role == 'client' else role}"]


def test_servers_carry_hosts_and_a_role_name(made: Path) -> None:
    names = names_of(made / "he.pem")
    dns = names.get_values_for_type(x509.DNSName)
    assert dns == ["he.secure-quant.internal", "localhost", "he.example.org"]
    addresses = [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1", "192.0.2.7"]


def test_a_client_s_certificate_cannot_serve(made: Path) -> None:
    cert = x509.load_pem_x509_certificate((made / "client.pem").read_bytes())
    uses = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert names_of(made / "client.pem").get_values_for_type(x509.DNSName) == []


def test_keys_are_for_their_owner_alone(made: Path) -> None:
    for path in made.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_existing_files_are_kept_unless_forced(made: Path, tmp_path: Path) -> None:
    make_all(tmp_path)
    before = (tmp_path / "he.key").read_bytes()
    with pytest.raises(ConfigError, match="is there"):
        make_all(tmp_path)
    assert (tmp_path / "he.key").read_bytes() == before
    make_all(tmp_path, force=True)
    assert (tmp_path / "he.key").read_bytes() != before


def test_a_missing_file_is_named(made: Path) -> None:
    with pytest.raises(CertificateMissing, match=r"nobody\.pem"):
        Tls.from_dir(made, "nobody").load()


@pytest.mark.parametrize("part", ["ca", "cert", "key"])
def test_garbage_is_no_certificate(made: Path, part: str) -> None:
    files = {"ca": made / "ca.pem", "cert": made / "he.pem", "key": made / "he.key"}
    with pytest.raises(CertificateMissing, match=part):
        Tls(**(files | {part: b"-----BEGIN nothing-----"})).load()


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("part", ["ca", "cert"])
def test_a_certificate_with_wrong_bits_is_taken_whole_or_refused_by_name(part: str) -> None:
    authority, random = Authority(), Random(11)  # noqa: S311
    cert, key = authority.issue("he")
    files = {"ca": authority.pem, "cert": cert, "key": key}
    der = ssl.PEM_cert_to_DER_cert(files[part].decode())
    for _ in range(400):
        damaged = bytearray(der)
        damaged[random.randrange(len(der))] ^= 1 << random.randrange(8)
        tls = Tls(**(files | {part: ssl.DER_cert_to_PEM_cert(bytes(damaged)).encode()}))
        with suppress(CertificateMissing, CertificateMismatch, CertificateExpired):
            loaded = tls.load()
            expiry(loaded)
            own_role(loaded)


def test_an_expired_certificate_is_refused() -> None:
    authority = Authority()
    cert, key = authority.issue("he", until=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(CertificateExpired, match="certificate"):
        Tls(authority.pem, cert, key).load()


def test_a_key_of_another_certificate_is_refused(made: Path) -> None:
    with pytest.raises(CertificateMismatch, match="private key"):
        Tls(made / "ca.pem", made / "he.pem", made / "client.key").load()


def test_a_certificate_of_another_authority_is_refused(made: Path) -> None:
    cert, key = Authority().issue("he")
    with pytest.raises(CertificateMismatch, match="issuer"):
        Tls(made / "ca.pem", cert, key).load()


def test_no_key_in_any_representation() -> None:
    authority = Authority()
    cert, key = authority.issue("he")
    tls = Tls(authority.pem, cert, key)
    line = key.splitlines()[1].decode()
    assert line not in repr(tls)
    assert line not in repr(tls.load())


def test_plaintext_only_in_so_many_words() -> None:
    assert check_security(InsecurePlaintext()) == InsecurePlaintext()
    for nothing in (None, False, "plaintext"):
        with pytest.raises(InsecureRefused, match="InsecurePlaintext"):
            check_security(nothing)


@pytest.mark.parametrize("text", ["party0", "party1", "dealer", "he", "client", "client/a.b-c_9"])
def test_roles_round_trip(text: str) -> None:
    assert str(Role.parse(text)) == text


@pytest.mark.parametrize("text", ["", "party2", "client/", "client/a b", "he\n", "client/../he"])
def test_other_roles_are_refused(text: str) -> None:
    with pytest.raises(ValueOutOfRange):
        Role.parse(text)


class _Context:
    def __init__(self, kind: bytes, *uris: bytes) -> None:
        self._facts = {"transport_security_type": [kind], "peer_uri": list(uris)}

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._facts


def test_peer_role_reads_one_uri_and_nothing_else() -> None:
    ours, other = b"secure-quant:role/client/bob", b"spiffe://example.org/x"
    assert peer_role(_Context(b"ssl", other, ours)) == Role("client", "bob")
    assert peer_role(_Context(b"insecure", ours)) is None
    for uris in ((), (other,), (ours, ours), (b"secure-quant:role/root",)):
        with pytest.raises(Unauthenticated):
            peer_role(_Context(b"ssl", *uris))
