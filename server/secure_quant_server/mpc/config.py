"""What a front tells the worker process of a lane."""

from __future__ import annotations

from dataclasses import dataclass, field

from secure_quant.errors import MalformedMessage
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.transport import Credentials, InsecurePlaintext, Security, SwappedTls, Tls
from secure_quant_server.common.bundles import Bundle
from secure_quant_server.common.messages import Parts
from secure_quant_server.mpc.messages import Certificates, Place, Setup

__all__ = ["LaneConfig", "swap", "to_certificates"]

PEM = ("ca", "cert", "key")


@dataclass(frozen=True, kw_only=True)
class LaneConfig:
    """The private key and the bundles travel over the pipe, never as arguments or files; what a
    front holds as a ``Bundle`` is bytes at the worker."""

    place: Place
    options: LaneOptions
    security: Security
    bundles: tuple[bytes | memoryview | Bundle, ...] = field(repr=False)

    def to_setup(self) -> Setup:
        """As a message. Raises the errors of ``Tls.load``."""
        parts: list[bytes | memoryview | Bundle] = []
        name = None
        if isinstance(self.security, Tls):
            name = self.security.server_name
            parts += _pem(self.security.load())
        parts += self.bundles
        tls, sizes = isinstance(self.security, Tls), tuple(len(part) for part in parts)
        return Setup(self.place, self.options, tls, name or "", sizes, Parts(tuple(parts)))

    @classmethod
    def from_setup(cls, setup: Setup) -> LaneConfig:
        """Inverse of ``to_setup``."""
        parts = _parts(setup)
        security: Security = InsecurePlaintext()
        if setup.tls:
            name = setup.server_name or None
            ca, cert, key = map(bytes, parts[:3])
            security = Tls(ca, cert, key, server_name=name)
            parts = parts[3:]
        return cls(
            place=setup.place, options=setup.options, security=security, bundles=tuple(parts)
        )


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
    ca, cert, key = map(bytes, parts)
    security.swap(Tls(ca, cert, key, server_name=security.server_name))


def _pem(found: Credentials) -> list[bytes]:
    return [getattr(found, name) for name in PEM]


def _parts(message: Setup | Certificates) -> list[memoryview]:
    """Views of the body: bundles may be large."""
    view, parts, start = memoryview(_received(message)), [], 0
    for size in message.sizes:
        parts.append(view[start : start + size])
        start += size
    return parts


def _received(message: Setup | Certificates) -> bytes | memoryview:
    if isinstance(message.body, Parts):
        raise MalformedMessage("setup", got="one that was not sent yet")
    return message.body
