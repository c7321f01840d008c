"""Who a caller is: the role that its certificate names.

A certificate carries its role twice: as the URI ``secure-quant:role/<role>``, which servers read,
and, for roles that serve, as the DNS name ``<role>.secure-quant.internal``, which clients verify in
place of a host name. A certificate is thus bound to a role, not to an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from secure_quant.engines import roles
from secure_quant.errors import Unauthenticated, ValueOutOfRange

__all__ = ["DOMAIN", "URI_PREFIX", "Role", "peer_role", "role_of"]

URI_PREFIX = "secure-quant:role/"
DOMAIN = "secure-quant.internal"
_ROLE = re.compile(r"([a-z][a-z0-9-]*)(?:/([A-Za-z0-9][A-Za-z0-9._-]{0,63}))?")


@dataclass(frozen=True, slots=True)
class Role:
    """``kind`` is ``client`` or a role that an engine has; ``name`` tells clients apart."""

    kind: str
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Role:
        """``party0``, ``client/alice``, ... Raises ValueOutOfRange."""
        match = _ROLE.fullmatch(text)
        if match is None or match[1] not in {"client", *roles()}:
            raise ValueOutOfRange("role", got=repr(text[:80]), expected="party0, client/NAME, ...")
        return cls(match[1], match[2] or "")

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind

    @property
    def uri(self) -> str:
        return f"{URI_PREFIX}{self}"

    @property
    def dns_name(self) -> str:
        """What a server of this role is called inside its certificate."""
        return f"{self.kind}.{DOMAIN}"


class _Context(Protocol):
    """What ``grpc.ServicerContext`` and ``grpc.aio.ServicerContext`` have in common here."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...


def peer_role(context: _Context) -> Role | None:
    """The role in the caller's verified certificate; None on a plaintext connection.

    Raises Unauthenticated if the connection is encrypted but names no role, or more than one.
    """
    facts = context.auth_context()
    if b"ssl" not in facts.get("transport_security_type", ()):
        return None
    return role_of(uri.decode("ascii", "replace") for uri in facts.get("peer_uri", ()))


def role_of(uris: Iterable[str]) -> Role:
    """The role that a certificate's URIs name. Raises Unauthenticated for none or several."""
    roles = [uri.removeprefix(URI_PREFIX) for uri in uris if uri.startswith(URI_PREFIX)]
    if len(roles) != 1:
        raise Unauthenticated(
            "certificate", got=f"{len(roles)} roles", expected=f"one URI {URI_PREFIX}..."
        )
    try:
        return Role.parse(roles[0])
    except ValueOutOfRange as error:
        raise Unauthenticated("certificate", got=error.got, expected="a known role") from error
