"""Who may call what: roles from certificates, client tokens, and the table method -> roles."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from secure_quant.engines import roles
from secure_quant.errors import ConfigError, PermissionDenied, Unauthenticated
from secure_quant.transport import Role, peer_role
from secure_quant_server.common import logs

__all__ = ["Access", "Caller", "Tokens", "current_caller", "make_token"]

_OPEN_SERVICES = frozenset({
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "grpc.reflection.v1.ServerReflection",
})  # fmt: skip
"""For every role."""
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Caller:
    """role: None on a plaintext connection. name: whose budget pays; the token's name, else the
    certificate's, else ``anonymous``."""

    role: Role | None
    name: str


_CALLER: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Who made the call that is being served."""
    return _CALLER.get(Caller(None, "anonymous"))


class Tokens:
    """Client tokens by their SHA-256; the file does not hold the tokens themselves.

    One ``NAME HEX64`` per line; blank lines and lines that begin with ``#`` are skipped.
    """

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = {name: bytes.fromhex(digest) for name, digest in digests.items()}
        self._path: Path | None = None
        self._stamp: object = None

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokens:
        """Follows the file: who is added or struck out counts from the next call on, and a file
        that cannot be read changes nothing. Raises ConfigError."""
        stamp = file_stamp(Path(path))
        made = cls(_read_tokens(Path(path)))
        made._path, made._stamp = Path(path), stamp
        return made

    def _follow(self) -> None:
        if self._path is None or (stamp := file_stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            digests = _read_tokens(self._path)
        except ConfigError as error:
            logs.event("tokens not taken", level=logging.WARNING, reason=str(error))
            return
        self._digests = {name: bytes.fromhex(digest) for name, digest in digests.items()}
        logs.event("tokens taken", clients=len(digests))

    def name(self, token: str) -> str:
        """Whose token it is; takes as long for a wrong one. Raises Unauthenticated."""
        self._follow()
        digest, found = hashlib.sha256(token.encode()).digest(), None
        for name, expected in self._digests.items():
            if hmac.compare_digest(digest, expected):
                found = name
        if found is None:
            raise Unauthenticated("token", got="one that is not known here")
        return found


def file_stamp(path: Path) -> object:
    """What changes where the file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read_tokens(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError("token file", got=f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("token file", got=path, expected="a text file") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] in found:
            # The line itself stays out of the message: it may be a token pasted by mistake.
            where = f"line {number} of the token file"
            raise ConfigError(where, expected="NAME and a SHA-256 in hex, each name once")
        found[match[1]] = match[2]
    return found


def make_token(name: str) -> tuple[str, str]:
    """(a fresh 256-bit token for the client, the line for the server's token file)."""
    token = secrets.token_urlsafe(32)
    return token, f"{name} {hashlib.sha256(token.encode()).hexdigest()}"


@dataclass(frozen=True)
class Access:
    """methods: full method or service name (``secure_quant.v1.X`` or ``secure_quant.v1.X/Y``) ->
    kinds of roles allowed; what is not listed is refused. tokens: asked of clients if given."""

    methods: Mapping[str, frozenset[str]]
    tokens: Tokens | None = None
    _table: Mapping[str, frozenset[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "_table",
            {**dict.fromkeys(_OPEN_SERVICES, frozenset({"client", *roles()})), **self.methods},
        )

    @staticmethod
    def is_open(method: str) -> bool:
        """Health and reflection: what every certified caller may ask, without a token."""
        return method.removeprefix("/").partition("/")[0] in _OPEN_SERVICES

    def admit(self, method: str, context: grpc.aio.ServicerContext[object, object]) -> Caller:
        """The caller, who may call ``method`` (``/package.Service/Name``).

        Raises Unauthenticated, PermissionDenied.
        """
        path = method.removeprefix("/")
        service = path.partition("/")[0]
        allowed = self._table.get(path, self._table.get(service, frozenset()))
        role = peer_role(context)
        if role is not None and role.kind not in allowed:
            expected = ", ".join(sorted(allowed)) or "nobody"
            raise PermissionDenied(path, got=f"role {role.kind}", expected=expected)
        name = (role.name if role else "") or (role.kind if role else "anonymous")
        pays = self.tokens is not None and (role is None or role.kind == "client")
        if pays and service not in _OPEN_SERVICES and self.tokens is not None:
            name = self.tokens.name(_bearer(context))
        caller = Caller(role, name)
        _CALLER.set(caller)
        return caller


def _bearer(context: grpc.aio.ServicerContext[object, object]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                return token
    hint = "this server asks clients for a token: --token-file, or token="
    raise Unauthenticated("authorization", got="none", expected="Bearer TOKEN", hint=hint)
