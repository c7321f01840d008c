"""A role's services over HTTPS, for browsers: calls of the Connect protocol with one request and
one answer or several, messages in binary. Every call passes the same guard as one over gRPC.

Source: connectrpc.com/docs/protocol; CORS by fetch.spec.whatwg.org.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from google.protobuf import message_factory

from secure_quant import tracing
from secure_quant.errors import (
    ConfigError,
    DeadlineExceeded,
    MalformedMessage,
    MessageTooLarge,
    OpNotSupported,
    PermissionDenied,
)
from secure_quant.transport import (
    FreshCredentials,
    InsecurePlaintext,
    Role,
    Security,
    ServerPair,
    fresh_context,
)
from secure_quant.wire import connect_end, connect_error, to_status
from secure_quant.wire.status import Status
from secure_quant.within import within
from secure_quant_server.common import logs
from secure_quant_server.common.guard import Guard

__all__ = ["Methods", "WebFront", "methods_of"]

BINARY, STREAM = "application/proto", "application/connect+proto"
ENVELOPE = struct.Struct(">BI")
"""Before each message of a stream: flags, and its length."""
LAST = 2
"""Flag of the JSON that ends a stream."""
HEADERS = "authorization, connect-protocol-version, connect-timeout-ms, content-type, traceparent"
PREFLIGHT_S = 7200
SILENT_S = 10.0
"""For the handshake, and from there to the end of the first request's head."""
UNUSED_S = 75.0
_LOG = logging.getLogger("secure_quant_server.web")
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class _Foreseen(logging.Filter):
    """Of what aiohttp says, that a peer broke HTTP is left out: it is told, and may be anybody."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or not issubclass(kind, HttpProcessingError)


_LOG.addFilter(_Foreseen())


@dataclass(frozen=True)
class _Method:
    parse: Callable[[bytes], Any]
    behaviour: Callable[[Any, Any], Any]
    streams: bool


Methods = Mapping[str, _Method]
"""Path -> what answers there."""


def methods_of(service: Any, servicer: object) -> Methods:
    """Those of a generated service descriptor with one request, as ``servicer`` answers them."""
    return {
        f"/{service.full_name}/{each.name}": _Method(
            message_factory.GetMessageClass(each.input_type).FromString,
            getattr(servicer, each.name),
            each.server_streaming,
        )
        for each in service.methods
        if not each.client_streaming
    }


class _Ended(Exception):
    """A status that the caller is to be told."""

    def __init__(self, status: Status) -> None:
        super().__init__(status[1])
        self.status = status


class _Context:
    """Of a call over HTTP, as guard and servicers know those of gRPC. Its caller is a client,
    whose token stands where its certificate would."""

    def __init__(self, request: Any, seconds: float | None) -> None:
        told = ((name, request.headers.get(name)) for name in ("authorization", tracing.HEADER))
        self._metadata = tuple((name, value) for name, value in told if value is not None)
        self._end = None if seconds is None else time.monotonic() + seconds

    def auth_context(self) -> Mapping[str, list[bytes]]:
        uri = Role("client").uri.encode()
        return {"transport_security_type": [b"ssl"], "peer_uri": [uri]}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        """Seconds."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    async def abort(self, code: grpc.StatusCode, text: str, details: Any) -> NoReturn:
        raise _Ended((code, text, details))


class WebFront:
    """Listens for browsers once it was started.

    listen          ``host:port``; 0 lets the system choose.
    security        the role's: its own certificate is shown unless there is a ``pair``.
    plaintext       without TLS, on loopback only: behind a proxy there that ends it.
    origins         whose pages may call, comma-separated; ``*`` for those of every one.
    has_tokens      callers are asked for one, which is all that tells them apart.
    request_bytes   longest message taken.
    """

    def __init__(
        self,
        guard: Guard,
        methods: Methods,
        *,
        listen: str,
        security: Security,
        pair: ServerPair | None,
        plaintext: bool,
        origins: str | None,
        has_tokens: bool,
        request_bytes: int,
        max_connections: int,
    ) -> None:
        """Raises ConfigError."""
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) >= 2**16:
            raise ConfigError("http_listen", got=listen, expected="host:port")
        insecure = isinstance(security, InsecurePlaintext)
        if plaintext and host.strip("[]") not in LOOPBACK:
            raise ConfigError(
                "http_plaintext", got=f"--http-listen {listen}", expected="an address of loopback",
                hint="a proxy on this host may end TLS; elsewhere tokens and shares could be read",
            )  # fmt: skip
        if not has_tokens and not insecure:
            raise ConfigError(
                "http_listen", got="no file of tokens", expected="--tokens",
                hint="browsers show no certificate: a token is what tells clients apart",
            )  # fmt: skip
        self._host, self._port, self._security = host.strip("[]"), int(port), security
        self._pair, self._plain = pair, plaintext or (insecure and pair is None)
        self._origins = _origins(origins)
        self._guard, self._methods = guard, methods
        self._most, self._max_connections = request_bytes, max_connections
        self._silent: dict[Any, asyncio.TimerHandle] = {}
        self._server: Any = None
        self._listener: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> int:
        """Begin to listen; the port. Raises ConfigError and the errors of ``Tls.load``."""
        context = None
        if not self._plain:
            own = self._pair or self._security
            if isinstance(own, InsecurePlaintext):
                raise ConfigError("http_cert", expected="a certificate")
            context = fresh_context(FreshCredentials(own), "http/1.1", mutual=False)
        self._server = web.Server(
            self._answer, handler_cancellation=True, access_log=None, auto_decompress=False,
            keepalive_timeout=UNUSED_S, lingering_time=2.0, read_bufsize=2**16, logger=_LOG,
        )  # fmt: skip
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._accept, self._host, self._port, ssl=context,
                ssl_handshake_timeout=None if context is None else SILENT_S,
            )  # fmt: skip
        except OSError as error:
            got = f"{self._host}:{self._port}"
            raise ConfigError("http_listen", got=got, expected="a free address") from error
        self.port = self._listener.sockets[0].getsockname()[1]
        security = "plaintext" if self._plain else "Tls"
        logs.event("listening for browsers", address=f"{self._host}:{self.port}", security=security)
        return self.port

    async def stop(self, grace_s: float) -> None:
        """No new connections, then ``grace_s`` for the calls that run."""
        if self._listener is not None:
            self._listener.close()
            for timer in self._silent.values():
                timer.cancel()
            self._server.pre_shutdown()
            await self._server.shutdown(grace_s)

    def _accept(self) -> asyncio.Protocol:
        if len(self._server.connections) >= self._max_connections:
            return _Refused()
        made: asyncio.Protocol = self._server()
        later = asyncio.get_running_loop().call_later
        self._silent[made] = later(2 * SILENT_S, self._cut, made)
        return made

    def _cut(self, silent: Any) -> None:
        del self._silent[silent]
        silent.force_close()

    async def _answer(self, request: Any) -> Any:
        first = self._silent.pop(request.protocol, None)
        if first is not None:
            first.cancel()
        origin = request.headers.get("Origin")
        answer = await self._routed(request, origin)
        if not answer.prepared:
            answer.headers.update(self._headers(origin))
        return answer

    def _headers(self, origin: str | None) -> dict[str, str]:
        """Of every answer."""
        made = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Vary": "Origin"}
        if origin is not None and self._allows(origin):
            made["Access-Control-Allow-Origin"] = origin
        return made

    def _allows(self, origin: str) -> bool:
        return "*" in self._origins or origin in self._origins

    async def _routed(self, request: Any, origin: str | None) -> Any:
        method = self._methods.get(request.path)
        if method is None:
            return web.Response(status=404)
        if origin is not None and not self._allows(origin):
            error = PermissionDenied("origin", got=origin[:200], expected="one of --http-origins")
            return _told(to_status(error))
        if request.method == "OPTIONS":
            headers = {
                "Access-Control-Allow-Methods": "POST",
                "Access-Control-Allow-Headers": HEADERS,
                "Access-Control-Max-Age": str(PREFLIGHT_S),
            }
            return web.Response(status=204, headers=headers)
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST, OPTIONS"})
        kind = STREAM if method.streams else BINARY
        if request.headers.get("Content-Type") != kind:
            return web.Response(status=415, headers={"Accept-Post": kind})
        return await (self._stream if method.streams else self._call)(request, method)

    async def _stream(self, request: Any, method: _Method) -> Any:
        """Answers as they come; what went wrong is in the last envelope."""
        made = web.StreamResponse(headers=self._headers(request.headers.get("Origin")))
        made.content_type = STREAM
        await made.prepare(request)
        end = b"{}"
        try:
            seconds = _checked_head(request, "Connect-Content-Encoding")
            context = _Context(request, seconds)
            answers = self._guard.answers(
                request.path, method.parse, method.behaviour,
                lambda: self._enveloped(request), context,
            )  # fmt: skip
            in_time = within(seconds, lambda: DeadlineExceeded("no end in time"))
            async with in_time, aclosing(answers):
                async for answer in answers:
                    await made.write(_envelope(0, answer.SerializeToString()))
        except _Ended as ended:
            end = connect_end(ended.status)
        except (DeadlineExceeded, MalformedMessage, OpNotSupported) as error:  # not the guard's
            end = connect_end(to_status(error))
        await made.write(_envelope(LAST, end))
        await made.write_eof()
        return made

    async def _enveloped(self, request: Any) -> bytes:
        """The one message of a stream of requests. Raises as ``_body``, OpNotSupported."""
        body = await self._body(request)
        flags, size = ENVELOPE.unpack_from(body) if len(body) >= ENVELOPE.size else (0, -1)
        if size != len(body) - ENVELOPE.size:
            raise MalformedMessage("request", got="another length", expected="one message")
        if flags:
            raise OpNotSupported("flags of a message", got=flags, expected=0)
        return body[ENVELOPE.size :]

    async def _call(self, request: Any, method: _Method) -> Any:
        try:
            seconds = _checked_head(request)
            context = _Context(request, seconds)
            async with within(seconds, lambda: DeadlineExceeded("no answer in time")):
                answer = await self._guard.answer(
                    request.path, method.parse, method.behaviour,
                    lambda: self._body(request), context,
                )  # fmt: skip
        except _Ended as ended:
            return _told(ended.status)
        except (DeadlineExceeded, MalformedMessage, OpNotSupported) as error:  # not the guard's
            return _told(to_status(error))
        return web.Response(body=answer.SerializeToString(), content_type=BINARY)

    async def _body(self, request: Any) -> bytes:
        """Raises MessageTooLarge, by the announced length where there is one, MalformedMessage."""
        made = bytearray()
        if (request.content_length or 0) > self._most:
            raise _too_large(request.content_length, self._most)
        try:
            async for part in request.content.iter_any():
                made += part
                if len(made) > self._most:
                    raise _too_large(len(made), self._most)
        except (HttpProcessingError, web.RequestPayloadError, ConnectionError) as error:
            raise MalformedMessage("request", got="half a message") from error
        return bytes(made)


class _Refused(asyncio.Protocol):
    """One connection more than there may be."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's callback."""
        with suppress(AttributeError):
            transport.abort()  # type: ignore[attr-defined]  # of a Transport


def _envelope(flags: int, message: bytes) -> bytes:
    return ENVELOPE.pack(flags, len(message)) + message


def _checked_head(request: Any, encoded: str = "Content-Encoding") -> float | None:
    """Seconds that the caller waits, if it said so. Raises MalformedMessage, OpNotSupported."""
    version = request.headers.get("Connect-Protocol-Version", "1")
    if version != "1":
        raise MalformedMessage("connect-protocol-version", got=version[:20], expected="1")
    encoding = request.headers.get(encoded, "identity")
    if encoding != "identity":
        raise OpNotSupported("content-encoding", got=encoding[:20], expected="identity")
    timeout = request.headers.get("Connect-Timeout-Ms")
    if timeout is None:
        return None
    if not (timeout.isascii() and timeout.isdecimal() and len(timeout) <= 10):
        raise MalformedMessage("connect-timeout-ms", expected="1 to 10 digits")
    return int(timeout) / 1000


def _origins(text: str | None) -> frozenset[str]:
    """Raises ConfigError for what is none: a path behind it, or a word."""
    found = frozenset(each.strip() for each in (text or "").split(",") if each.strip())
    for each in found - {"*"}:
        scheme, _, rest = each.partition("://")
        if scheme not in ("http", "https") or not rest or "/" in rest:
            raise ConfigError("http_origins", got=each[:200], expected="https://HOST[:PORT], or *")
    return found


def _too_large(got: int, most: int) -> MessageTooLarge:
    return MessageTooLarge("request", got=f"{got} bytes", expected=f"<= {most}")


def _told(status: Status) -> Any:
    http, body = connect_error(status)
    return web.Response(status=http, body=body, content_type="application/json")
