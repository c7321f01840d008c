"""The page of ``demo --web`` in a real browser: what is drawn is read, and what leaves it is noise.

With SECURE_QUANT_SCREENSHOTS=FOLDER the pictures of docs/browser.md are taken there.
"""

from __future__ import annotations

import http.client
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.browser import chromium
from patience import ample

from secure_quant import Graph, reference
from secure_quant.wire.gen import share_inference_pb2 as pb
from secure_quant_cli.cluster import free_ports

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.heavy

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
Points = list[tuple[float, float]]


def arc(x: float, y: float, w: float, h: float, start: float, stop: float) -> Points:
    """Of an ellipse, in quarter turns from the right, clockwise; sizes of the pad are 1."""
    turns = np.linspace(start, stop, 24) * math.pi / 2
    return [(x + w * math.cos(t), y + h * math.sin(t)) for t in turns]


DRAWN: dict[int, list[Points]] = {
    0: [arc(0.5, 0.5, 0.2, 0.33, 0, 4)],
    1: [[(0.38, 0.3), (0.52, 0.17), (0.52, 0.83)]],
    2: [[*arc(0.5, 0.32, 0.19, 0.16, 2, 4.6), (0.31, 0.82), (0.72, 0.82)]],
    3: [[*arc(0.47, 0.33, 0.2, 0.16, 2.6, 5), *arc(0.47, 0.66, 0.22, 0.17, 3, 5.6)]],
    7: [[(0.28, 0.18), (0.72, 0.18), (0.44, 0.84)], [(0.36, 0.5), (0.68, 0.5)]],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def url(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("demo")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "secure_quant_cli", "demo", "--web",
               "--page-port", str(port), "--work", str(folder)]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + ample(240)
        while b"open http" not in (folder / "log").read_bytes():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(ample(30))


class Page:
    """An open page, and all that it sent and got."""

    def __init__(self, context: Any, url: str) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.complaints: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(ample(20) * 1000)
        self.page.on("requestfinished", self._finished)
        self.page.on("console", lambda each: self.complaints.append(each.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.got: dict[str, bytes] = {}
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready]")
        self.shown = 0

    def _finished(self, request: Any) -> None:
        if request.method == "POST":
            self.sent.append((request.url, request.post_data_buffer))
            self.got[request.url] = request.response().body()

    def draw(self, strokes: list[Points]) -> str:
        """The digit that the page says."""
        self.page.locator("#clear").click()
        box = self.page.locator("#pad").bounding_box()
        at = [
            [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in stroke]
            for stroke in strokes
        ]
        for first, *rest in at:
            self.page.mouse.move(*first)
            self.page.mouse.down()
            for place in rest:
                self.page.mouse.move(*place, steps=4)
            self.page.mouse.up()
            self.wait()
        return self.page.locator("#digit").inner_text()

    def wait(self) -> None:
        self.shown += 1
        self.page.wait_for_selector(f"body[data-shown='{self.shown}']")

    def exchange(self) -> tuple[list[pb.InferRequest], list[pb.InferResponse], np.ndarray]:
        """Of the last inference: what each party got and answered, and the pixels, as posted to
        the user's own program."""
        asked = [(u, body) for u, body in self.sent if u.endswith("/Infer")][-2:]
        asked.sort(key=lambda pair: b"\x2a\x20" in pair[1][:200] and len(pair[1]) < 200)
        pixels = [body for u, body in self.sent if u.endswith("/reference")][-1]
        return (
            [pb.InferRequest.FromString(body) for _, body in asked],
            [pb.InferResponse.FromString(self.got[u]) for u, _ in asked],
            np.frombuffer(pixels, "<f4").reshape(1, 3, 32, 32),
        )


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Page(context, url)
    context.close()


def test_digits_are_drawn_and_read(page: Page):
    read = {digit: page.draw(strokes) for digit, strokes in DRAWN.items()}
    assert read == {digit: str(digit) for digit in DRAWN}
    assert "equal to plaintext, to the last bit" in page.page.locator("#verdict").inner_text()
    assert page.complaints == []


def test_each_party_gets_noise_and_both_together_the_drawing(page: Page, url: str):
    page.draw(DRAWN[2])
    (first, second), answers, pixels = page.exchange()
    assert (first.WhichOneof("input"), second.WhichOneof("input")) == ("share", "seed")
    assert first.request_id == second.request_id
    graph = _graph(page)
    q = reference.quantize_input(graph, pixels)
    assert len(np.unique(q)) > 20
    share = np.frombuffer(first.share, np.uint8)
    stream = _stream(second.seed, share.size)
    np.testing.assert_array_equal((share ^ stream).view(np.int8), q.reshape(-1))
    for noise in (share, stream):  # 255 degrees of freedom: mean 255, deviation 23
        counts = np.bincount(noise, minlength=256)
        assert ((counts - noise.size / 256) ** 2).sum() / (noise.size / 256) < 255 + 6 * 23
        assert abs(np.corrcoef(noise, q.reshape(-1))[0, 1]) < 0.1
    shares = [np.frombuffer(answer.share, "<u8") for answer in answers]
    opened = (shares[0] + shares[1]).view(np.int64)
    rows = page.page.locator("#bits tr").all()
    shown = [[cell.inner_text() for cell in row.locator("td").all()] for row in rows]
    for i, (_, both, mine, truth) in enumerate(shown):
        assert both == f"{shares[0][i]:016x} + {shares[1][i]:016x}"
        assert mine == str(opened[i]) == truth.rstrip(" ✓")
    assert page.page.locator("#digit").inner_text() == str(opened.argmax())


def test_a_second_time_everything_that_is_sent_is_fresh(page: Page):
    held = []
    for _ in range(3):
        page.page.locator("#samples button").nth(5).click()
        page.wait()
        (first, second), _, pixels = page.exchange()
        held.append((first.share, second.seed, first.request_id, pixels.tobytes()))
    shares, seeds, ids, pixels = map(set, zip(*held, strict=True))
    assert [len(each) for each in (shares, seeds, ids, pixels)] == [3, 3, 3, 1]
    digit = page.page.locator("#digit").inner_text()
    assert digit == "5"


def test_the_page_speaks_to_nobody_else_and_parties_serve_no_page(page: Page, url: str):
    page.draw(DRAWN[1])
    origins = {re.match(r"https?://[^/]+", each)[0] for each, _ in page.sent}
    assert len(origins - {url}) == 2
    for party in origins - {url}:
        for path in ("/", "/page.js", "/settings.json"):
            assert _get(party, path).status == 404
    assert "default-src 'none'" in _get(url, "/").headers["Content-Security-Policy"]
    assert _get(url, "/settings.json").status == 200
    assert _get(url, "/settings.json", "evil.example").status == 403


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", WIDTHS)
def test_it_fits_a_desk_and_a_hand(browser: Any, url: str, name: str, scheme: str, tmp_path: Path):
    width, height = WIDTHS[name]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=name == "phone"
    )
    page = Page(context, url)
    for _ in range(3):  # the first ones pay for what is made once
        page.draw(DRAWN[2])
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, *_ = map(int, re.findall(r"\d+", background))
    assert (red < 64) == (scheme == "dark")
    page.page.wait_for_timeout(400)
    folder = Path(os.environ.get("SECURE_QUANT_SCREENSHOTS", tmp_path))
    page.page.screenshot(path=folder / f"browser-{name}-{scheme}.png", full_page=True)
    if (name, scheme) == ("desktop", "light"):
        upper = {"x": 0, "y": 0, "width": width, "height": 1370}
        page.page.screenshot(path=folder / "browser.png", full_page=True, clip=upper)
    context.close()


def _get(origin: str, path: str, host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(origin.removeprefix("http://"), timeout=ample(5))
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    return connection.getresponse()


def _graph(page: Page) -> Graph:
    """The model as the parties told the page of it."""
    told = next(body for u, body in page.got.items() if u.endswith("/GetModel"))
    answer = pb.ShareInferenceServiceGetModelResponse.FromString(told)
    from secure_quant.wire import info_from_proto

    return info_from_proto(answer.info).graph


def _stream(seed: bytes, count: int) -> np.ndarray:
    from secure_quant.keystream import Keystream

    return Keystream(seed).bytes(count)
