"""What a front tells the worker process of a lane."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from secure_quant.errors import ConfigError
from secure_quant.mpc.runtime.carriers import LinkProtocol
from secure_quant.mpc.runtime.session import LaneOptions
from secure_quant.transport import InsecurePlaintext, Security, Tls
from secure_quant_server.mpc.messages import Setup

__all__ = ["Border", "LaneConfig"]

Border = Literal["crypten", "none"]
"""What shares pass as where they enter and leave a lane: CrypTen's types, or plain arrays."""


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
            loaded, name = self.security.load(), self.security.server_name
            parts += [loaded.ca, loaded.cert, loaded.key]
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
        parts, start = [], 0
        for size in setup.sizes:
            parts.append(setup.body[start : start + size])
            start += size
        security: Security = InsecurePlaintext()
        if setup.tls:
            security = Tls(parts[0], parts[1], parts[2], server_name=setup.server_name or None)
            parts = parts[3:]
        protocol, border = setup.link_protocol, setup.border
        if protocol not in get_args(LinkProtocol) or border not in get_args(Border):
            raise ConfigError("lane", got=(protocol, border))
        return cls(
            party=setup.party, link=setup.link, dealer=setup.dealer,
            options=LaneOptions(**setup.options), security=security, bundles=tuple(parts),
            link_protocol=protocol, border=border,  # type: ignore[arg-type]  # checked above
        )  # fmt: skip
