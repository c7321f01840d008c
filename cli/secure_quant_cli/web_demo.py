"""The page of ``demo --web``: served by the user's own program on loopback, never by a role.

Whoever serves a page's code can read what is drawn on it before it is shared. So the parties serve
messages alone, and this process, which is the user's, serves the page, tells it where the parties
are, and computes in plaintext what to compare with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secure_quant.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from secure_quant.ir import Graph

__all__ = ["Page", "one_of_each", "origins", "serve"]

FILES = Path(__file__).with_name("web")
KINDS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HOSTS = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Page:
    """graph: with its weights, to compare with. targets: the parties' addresses for browsers.
    token: what the page shows them. samples: 8×8 digits from 0 to 16, one of each class."""

    graph: Graph
    targets: Sequence[str]
    token: str = field(repr=False)
    samples: Sequence[Sequence[float]]

    def settings(self) -> dict[str, Any]:
        """As the page asks for them."""
        return {
            "targets": list(self.targets),
            "token": self.token,
            "hash": self.graph.hash,
            "samples": [list(each) for each in self.samples],
        }

    def reference(self, body: bytes) -> list[str]:
        """float32[1, *input shape], little-endian -> the integers at the Output, in decimal.
        Raises ShapeMismatch, ValueOutOfRange."""
        from secure_quant import reference
        from secure_quant.errors import ShapeMismatch

        shape = (1, *self.graph.input.shape)
        if len(body) != 4 * int(np.prod(shape)):
            raise ShapeMismatch("pixels", got=f"{len(body)} bytes", expected=list(shape))
        x = np.frombuffer(body, "<f4").reshape(shape)
        q = reference.quantize_input(self.graph, x)
        return [str(each) for each in reference.run_int(self.graph, q).reshape(-1).tolist()]


def origins(port: int) -> list[str]:
    """What browsers call a page at that port of this machine."""
    return [f"http://{host}:{port}" for host in HOSTS]


def one_of_each(images: NDArray[np.float32], labels: NDArray[np.int64]) -> list[list[float]]:
    """The first image of each class, flat, from 0 to 16."""
    found = [int(np.flatnonzero(labels == label)[0]) for label in range(10)]
    return [[float(value) for value in images[i].reshape(-1) * 16] for i in found]


async def serve(page: Page, port: int, ready: asyncio.Event) -> None:
    """Serve until cancelled; ``ready`` is set once browsers may come. Raises ConfigError."""
    runner = _runner(page, port)
    await runner.setup()
    try:
        from aiohttp import web

        try:
            await web.TCPSite(runner, HOSTS[0], port).start()
        except OSError as error:
            raise ConfigError("--page-port", got=port, expected="a free port") from error
        ready.set()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _runner(page: Page, port: int) -> Any:
    from aiohttp import web

    own = {origin.removeprefix("http://") for origin in origins(port)}
    policy = "; ".join((
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:",
        f"connect-src 'self' {' '.join(page.targets)}", "base-uri 'none'", "form-action 'none'",
        "frame-ancestors 'none'",
    ))  # fmt: skip
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    async def guarded(request: Any, handler: Any) -> Any:
        # Another name for this address is a page of somebody else's that had it rebound.
        if request.host not in own:
            return web.Response(status=403, text="this page is for this machine alone")
        answer = await handler(request)
        answer.headers.update(headers)
        return answer

    async def file(request: Any) -> Any:
        name = request.match_info.get("name", "page.html")
        return web.Response(body=(FILES / name).read_bytes(), content_type=KINDS[name],
                            charset="utf-8")  # fmt: skip

    async def settings(request: Any) -> Any:
        return web.json_response(page.settings())

    async def compare(request: Any) -> Any:
        body = await request.read()
        return web.json_response(await asyncio.to_thread(page.reference, body))

    application = web.Application(middlewares=[web.middleware(guarded)], client_max_size=2**20)
    application.add_routes([
        web.get("/", file),
        web.get(f"/{{name:{'|'.join(KINDS)}}}", file),
        web.get("/settings.json", settings),
        web.post("/reference", compare),
    ])  # fmt: skip
    return web.AppRunner(application, access_log=None)
