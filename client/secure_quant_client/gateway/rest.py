"""The protocol over HTTP: JSON, and Triton's extension for tensors in binary behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from secure_quant.errors import (
    DeadlineExceeded,
    MalformedMessage,
    MessageTooLarge,
    Overloaded,
    PermissionDenied,
)
from secure_quant_client.gateway.house import EXTENSIONS, NAME, VERSION, House
from secure_quant_client.gateway.json_form import HEADER, Object, read, written
from secure_quant_client.gateway.status import FromServers, http_of

__all__ = ["LOG", "make_app"]

LOG = logging.getLogger("secure_quant_client.gateway.http")
"""For what aiohttp says."""

BODY_S = 60.0
BODIES_BYTES = 128 * 2**20
"""Of bodies that are received at once."""
LARGE = 2**16
"""Bytes from which on a body is read in a thread."""


class _Foreseen(logging.Filter):
    """That a caller broke HTTP is left out: it is told, and may be anybody."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or not issubclass(kind, HttpProcessingError | web.RequestPayloadError)


LOG.addFilter(_Foreseen())


def make_app(house: House, *, message_bytes: int, max_calls: int) -> web.Application:
    """Routes of the protocol. message_bytes: largest body. max_calls: requests at once."""
    app = web.Application(middlewares=[_Border(max_calls)], client_max_size=message_bytes)
    rest = _Rest(house, message_bytes)
    app.router.add_get("/v2", rest.server)
    app.router.add_get("/v2/", rest.server)
    app.router.add_get("/v2/health/live", rest.live)
    app.router.add_get("/v2/health/ready", rest.ready)
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        app.router.add_get(path, rest.metadata)
        app.router.add_get(f"{path}/ready", rest.model_ready)
        app.router.add_post(f"{path}/infer", rest.infer)
    return app


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Border:
    """Around every request: room for it, no page of a browser, errors as the protocol says them."""

    __middleware_version__ = 1

    def __init__(self, max_calls: int) -> None:
        self._max_calls, self._running = max_calls, 0

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._running += 1
        try:
            if self._running > self._max_calls:
                raise Overloaded("requests at once", expected=f"<= {self._max_calls}")
            if "Origin" in request.headers:
                # A page in the user's browser reaches loopback too, and nobody asked for it.
                got = "one of a web page"
                raise PermissionDenied("request", got=got, expected="none with Origin")
            return await handler(request)
        except web.HTTPException as error:
            return web.json_response({"error": error.reason}, status=error.status)
        except Exception as error:  # noqa: BLE001  the border: it is named, or logged by an id
            code, text = http_of(error)
            return web.json_response({"error": text}, status=code)
        finally:
            self._running -= 1


class _Rest:
    def __init__(self, house: House, message_bytes: int) -> None:
        self._house, self._message_bytes = house, message_bytes
        self._held = 0

    async def live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        return _readiness(await self._house.reason(), {"live": True})

    async def server(self, request: web.Request) -> web.Response:
        return web.json_response({"name": NAME, "version": VERSION, "extensions": EXTENSIONS})

    async def model_ready(self, request: web.Request) -> web.Response:
        model, version = _named(request)
        served = self._house.model(model)
        return _readiness(await self._house.reason(model, version), {"name": served.name})

    async def metadata(self, request: web.Request) -> web.Response:
        model, version = _named(request)
        served = self._house.model(model)
        found = await served.version(version)
        inputs, outputs = (
            [{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in some]
            for some in await served.tensors()
        )
        return web.json_response({
            "name": served.name, "versions": [found], "platform": served.platform,
            "inputs": inputs, "outputs": outputs,
        })  # fmt: skip

    async def infer(self, request: web.Request) -> web.Response:
        model, version = _named(request)
        served = self._house.model(model)
        body = await self._body(request)
        header = request.headers.get(HEADER)
        if len(body) < LARGE:
            asked, binary = read(model, version, header, body)
        else:
            asked, binary = await asyncio.to_thread(read, model, version, header, body)
        made = await served.infer(asked)
        text, raw = written(made, binary)
        if not raw:
            return web.Response(body=text, content_type="application/json")
        return web.Response(
            body=b"".join((text, *raw)), content_type="application/octet-stream",
            headers={HEADER: str(len(text))},
        )  # fmt: skip

    async def _body(self, request: web.Request) -> bytes:
        """Takes room as bytes come, so that nobody holds any who sends none. Raises
        MalformedMessage, MessageTooLarge, Overloaded, DeadlineExceeded."""
        made = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.content.iter_any():
                    made += part
                    self._held += len(part)
                    if len(made) > self._message_bytes:
                        expected = f"<= {self._message_bytes} bytes"
                        raise MessageTooLarge("request", got="more", expected=expected)
                    if self._held > max(BODIES_BYTES, 2 * self._message_bytes):
                        raise Overloaded("bytes of requests at once", expected=f"<= {BODIES_BYTES}")
            return bytes(made)
        except TimeoutError as error:
            what = "the request did not arrive"
            raise DeadlineExceeded(what, expected=f"<= {BODY_S:g} s") from error
        except web.RequestPayloadError as error:
            expected = "a body in the encoding that it states"
            raise MalformedMessage("request", expected=expected) from error
        except ConnectionError as error:  # nobody hears it, and nothing failed
            raise MalformedMessage("request", got="half of it") from error
        finally:
            self._held -= len(made)


def _named(request: web.Request) -> tuple[str, str]:
    return request.match_info["model"], request.match_info.get("version", "")


def _readiness(reason: Exception | None, body: Object) -> web.Response:
    if reason is None:
        return web.json_response(body | {"ready": True})
    code, text = http_of(reason)
    if not isinstance(reason, FromServers) and code == 404:
        return web.json_response({"error": text}, status=code)
    return web.json_response(body | {"ready": False, "error": text}, status=503)
