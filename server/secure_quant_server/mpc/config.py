"""What a front tells the worker process of a lane."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from secure_quant.mpc.runtime.carriers import LinkProtocol
from secure_quant.mpc.runtime.session import LaneOptions
from secure_quant.transport import InsecurePlaintext, Security, Tls

__all__ = ["LaneConfig"]


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
    log_level: str = "INFO"

    def to_frame(self) -> tuple[dict[str, Any], bytes]:
        """As one frame of a pipe."""
        parts: list[bytes] = []
        name = None
        if isinstance(self.security, Tls):
            loaded, name = self.security.load(), self.security.server_name
            parts += [loaded.ca, loaded.cert, loaded.key]
        parts += self.bundles
        fields = {
            "kind": "config", "party": self.party, "link": self.link, "dealer": self.dealer,
            "options": asdict(self.options), "tls": isinstance(self.security, Tls), "name": name,
            "link_protocol": self.link_protocol, "log_level": self.log_level,
            "sizes": [len(part) for part in parts],
        }  # fmt: skip
        return fields, b"".join(parts)

    @classmethod
    def from_frame(cls, fields: dict[str, Any], body: bytes) -> LaneConfig:
        """Inverse of ``to_frame``."""
        parts, start = [], 0
        for size in fields["sizes"]:
            parts.append(body[start : start + size])
            start += size
        security: Security = InsecurePlaintext()
        if fields["tls"]:
            security = Tls(parts[0], parts[1], parts[2], server_name=fields["name"])
            parts = parts[3:]
        options = LaneOptions(**fields["options"])
        return cls(
            party=fields["party"], link=fields["link"], dealer=fields["dealer"],
            options=options, security=security, bundles=tuple(parts),
            link_protocol=fields["link_protocol"], log_level=fields["log_level"],
        )  # fmt: skip
