"""The page of `demo --web` and what its program answers, without a browser and without roles."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from patience import ample

from conformance.builder import Net
from secure_quant import Graph, reference
from secure_quant.errors import ConfigError, ShapeMismatch
from secure_quant_cli import demo, web_demo

aiohttp = pytest.importorskip("aiohttp")


def graph() -> Graph:
    net = Net(3, (4,))
    net.linear(3)
    return net.done(salt=bytes(32))


PAGE = web_demo.Page(graph(), ["http://127.0.0.1:1", "http://127.0.0.1:2"], "a token", [[0.0] * 64])


def test_plaintext_is_the_reference_and_takes_nothing_else() -> None:
    x = np.array([[0.5, -1, 2, 0.25]], np.float32) * 10
    expected = reference.run_int(PAGE.graph, reference.quantize_input(PAGE.graph, x))
    assert PAGE.reference(x.tobytes()) == [str(each) for each in expected.reshape(-1).tolist()]
    for wrong in (b"", x.tobytes()[:-1], x.tobytes() * 2):
        with pytest.raises(ShapeMismatch):
            PAGE.reference(wrong)


def test_one_of_each_class_in_their_order() -> None:
    labels = np.array([*range(9, -1, -1), *range(10)])
    images = np.arange(20, dtype=np.float32).reshape(20, 1) / 16
    assert web_demo.one_of_each(images, labels) == [[float(9 - i)] for i in range(10)]


def test_the_page_shows_no_token_but_to_itself() -> None:
    assert "a token" not in repr(PAGE)


def test_what_is_served_and_to_whom() -> None:
    async def test() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ready = asyncio.Event()
        serving = asyncio.create_task(web_demo.serve(PAGE, port, ready))
        async with asyncio.timeout(ample(20)):
            await ready.wait()
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

                async def get(path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
                    async with session.get(path, headers=headers) as answer:
                        return answer.status, await answer.read(), dict(answer.headers)

                for name in ("page.html", "page.css", "page.js"):
                    status, body, headers = await get(f"/{name}")
                    assert (status, body) == (200, (web_demo.FILES / name).read_bytes())
                    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
                _, body, headers = await get("/")
                assert headers["Content-Type"] == "text/html; charset=utf-8"
                policy = headers["Content-Security-Policy"]
                assert "connect-src 'self' http://127.0.0.1:1 http://127.0.0.1:2;" in policy
                settings = json.loads((await get("/settings.json"))[1])
                assert settings["hash"] == PAGE.graph.hash
                for path in ("/../demo.py", "/web_demo.py", "/page.js/x", "/samples"):
                    assert (await get(path))[0] == 404
                for path in ("/", "/settings.json"):
                    assert (await get(path, Host=f"evil.example:{port}"))[0] == 403
                async with session.post("/reference", data=bytes(16)) as answer:
                    assert await answer.json() == PAGE.reference(bytes(16))
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving

    asyncio.run(test())


def test_the_page_has_what_its_script_looks_for() -> None:
    """The source is at hand in a checkout alone."""
    page = (web_demo.FILES / "page.html").read_text()
    source = Path(__file__).parents[3] / "client" / "web" / "demo"
    for name in ("pad", "hint", "clear", "samples", "digit", "bars", "latency", "rounds", "wire",
                 "bits", "verdict", "hash"):  # fmt: skip
        assert f'id="{name}"' in page
        assert any(f'"{name}"' in path.read_text() for path in source.glob("*.ts"))
    for inline in ("<style", " style=", "onclick", "<script>"):
        assert inline not in page  # the policy forbids it


def test_a_port_that_is_taken_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="page-port"):
            demo.show_page(taken.getsockname()[1], tmp_path)
    assert list(tmp_path.iterdir()) == []
