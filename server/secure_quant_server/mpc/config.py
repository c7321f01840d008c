"""What a front tells the worker process of a lane."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import get_args

from secure_quant.errors import ConfigError, MalformedMessage
from secure_quant.mpc.runtime.carriers import LinkProtocol
from secure_quant.mpc.runtime.session import LaneOptions
from secure_quant.transport import Credentials, InsecurePlaintext, Security, SwappedTls, Tls
from secure_quant_server.mpc.kinds import Border
from secure_quant_server.mpc.messages import Certificates, Setup

__all__ = ["LaneConfig", "swap", "to_certificates"]

PEM = ("ca", "cert", "key")


@dataclass(frozen=True, kw_only=True)
class LaneConfig:
    """link: the peer's address (party 0) or where to listen (party 1), of this lane;
    link_protocol: what it speaks. The private key and the bundles travel over the pipe, never as
    arguments or files."""

    party: int
    link: str
    dealer: str
    options: LaneOptions
    security: Security
    bundles: tuple[bytes, ...]
    link_protocol: LinkProtocol = "tls"
    border: Border = "crypten"

    def to_setup(self) -> Setup:
        """As a message. Raises the errors of ``Tls.load``."""
        parts: list[bytes] = []
        name = None
        if isinstance(self.security, Tls):
            name = self.security.server_name
            parts += _pem(self.security.load())
        parts += self.bundles
        return Setup(
            party=self.party, link=self.link, dealer=self.dealer, options=asdict(self.options),
            tls=isinstance(self.security, Tls), server_name=name or "",
            link_protocol=self.link_protocol, border=self.border,
            sizes=tuple(len(part) for part in parts), body=b"".join(parts),
        )  # fmt: skip

    @classmethod
    def from_setup(cls, setup: Setup) -> LaneConfig:
        """Inverse of ``to_setup``. Raises ConfigError."""
        parts = _parts(setup)
        security: Security = InsecurePlaintext()
        if setup.tls:
            name = setup.server_name or None
            security = Tls(parts[0], parts[1], parts[2], server_name=name)
            parts = parts[3:]
        protocol, border = setup.link_protocol, setup.border
        if protocol not in get_args(LinkProtocol) or border not in get_args(Border):
            raise ConfigError("lane", got=(protocol, border))
        return cls(
            party=setup.party, link=setup.link, dealer=setup.dealer,
            options=LaneOptions(**setup.options), security=security, bundles=tuple(parts),
            link_protocol=protocol, border=border,  # type: ignore[arg-type]  # checked above
        )  # fmt: skip


def to_certificates(found: Credentials) -> Certificates:
    """For workers that run."""
    parts = _pem(found)
    return Certificates(tuple(len(part) for part in parts), b"".join(parts))


def swap(security: Security, message: Certificates) -> None:
    """Inverse of ``to_certificates``, at a worker: its next connections use them. Raises
    MalformedMessage and the errors of ``Tls.load``, and then changes nothing."""
    parts = _parts(message)
    if not isinstance(security, SwappedTls) or len(parts) != len(PEM):
        raise MalformedMessage("certificates", got=f"{len(parts)} parts", expected=len(PEM))
    security.swap(Tls(parts[0], parts[1], parts[2], server_name=security.server_name))


def _pem(found: Credentials) -> list[bytes]:
    return [getattr(found, name) for name in PEM]


def _parts(message: Setup | Certificates) -> list[bytes]:
    parts, start = [], 0
    for size in message.sizes:
        parts.append(message.body[start : start + size])
        start += size
    return parts
