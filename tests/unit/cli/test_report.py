"""The page of ``verify --html``: complete, self-contained, the same in every run."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant import quantize, reference, save
from secure_quant_cli import inprocess
from secure_quant_cli.comparison import HISTOGRAM, compare
from secure_quant_cli.engines import he
from secure_quant_cli.intervals import wilson
from secure_quant_cli.main import main
from secure_quant_cli.report import render, scheme_study
from secure_quant_cli.report.histograms import densities

OWNER = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
"""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    names: dict = {}
    exec(OWNER, names)  # noqa: S102
    return names["build"]().eval()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def graph(model, x):
    return quantize(model, x)


@pytest.fixture(scope="module")
def found(graph, model, x):
    from secure_quant.quantizer.floats import float_values

    labels = model(torch.from_numpy(x)).argmax(1).numpy()
    floats = float_values(model, graph, x)
    made = compare(graph, x, ("reference", "mpc", "he", "onnx"), 8, floats=floats, labels=labels)
    made.report["schemes"] = scheme_study(model, x, labels)
    return made


class Page(HTMLParser):
    """Collects tags, ids and everything that could make a browser fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.roles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key == "role":
                self.roles.append(value)
            if key in ("src", "href", "xlink:href", "data", "action", "poster"):
                self.links.append(value)


def test_everything_agrees_and_is_counted(found) -> None:
    engines = found.report["engines"]
    assert found.report["bit_exact"] is True
    assert {name: each["compared"] for name, each in engines.items()} == {
        "mpc": 20 * 3, "he": 20 * (16 + 16 + 3 + 3), "onnx": 20 * (16 + 16 + 3 + 3),
    }  # fmt: skip
    assert all(each["first_difference"] is None for each in engines.values())
    assert all(each["accuracy"] == found.report["accuracy_int8"] for each in engines.values())
    assert found.report["accuracy_float"] == 1.0


def test_float_errors_are_those_at_the_output(found, graph, model, x) -> None:
    with torch.no_grad():
        error = np.abs(reference.run(graph, x) - model(torch.from_numpy(x)).numpy())
    last = found.report["layers"][-1]
    assert last["float_error_max"] == pytest.approx(error.max(), rel=1e-4)
    assert last["float_error_mean"] == pytest.approx(error.mean(), rel=1e-4)
    assert all("float_error_max" in layer for layer in found.report["layers"])


def test_traffic_of_layers_adds_up_to_the_plans(found) -> None:
    layers, plans = found.report["layers"], found.report["plans"]
    for engine, part in (("mpc", "online_bytes"), ("he", "bytes_up"), ("he", "bytes_down")):
        assert sum(layer.get(engine, {}).get(part, 0) for layer in layers) == plans[engine][part]
    dealt = sum(layer.get("mpc", {}).get("offline_bytes", 0) for layer in layers)
    assert plans["mpc"]["offline_bytes"] == dealt + 32  # and the seed


def test_histograms_count_every_value(found, graph, x) -> None:
    inputs = found.histograms[graph.input.name]
    assert inputs["int8"].sum() == inputs["float"].sum() == x.size
    q = reference.quantize_input(graph, x)
    assert inputs["int8"][HISTOGRAM[:-1] == 127] == (q == 127).sum()
    weights = [node.name for node in graph.nodes if "weight" in found.histograms.get(node.name, {})]
    assert [found.histograms[name]["weight"].sum() for name in weights] == [6 * 16, 16 * 3]


def test_page_is_self_contained(found, graph) -> None:
    text = render(found, graph)
    page = Page(text)
    assert all(link.startswith("#") for link in page.links)
    assert {"script", "link", "iframe", "img", "image"}.isdisjoint(page.open)
    assert "@import" not in text
    assert all(where.startswith("#") for where in re.findall(r"url\(([^)]*)\)", text))
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used <= set(page.ids)
    activations = sum("int8" in counts for counts in found.histograms.values())
    # errors, 2 layers' weights, activations, schemes, 2 + 2 costs, plaintext
    assert page.open.count("svg") == 9 + activations
    assert page.roles == ["img"] * page.open.count("svg")
    assert page.open.count("title") == 1 + page.open.count("svg")
    assert "✓ Bit-exact" in text


def test_page_has_a_dark_style_and_no_colour_of_its_own(found, graph) -> None:
    text = render(found, graph)
    assert "prefers-color-scheme: dark" in text
    body = text[text.index("<body>") :]
    assert set(re.findall(r"(?<!, )#[0-9a-f]{6}\b", body)) == set()  # a variable beside each


def test_accuracies_have_intervals(found, graph) -> None:
    low, high = found.report["accuracy_float_interval"]
    assert (low, high) == pytest.approx((0.8389, 1.0), abs=1e-4)  # 20 of 20
    assert "95 % interval 83.89% to 100.00%" in render(found, graph)


def test_intervals_are_wilsons() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_a_coarser_scale_makes_no_comb() -> None:
    rng = np.random.default_rng(0)
    every_third = 3 * np.rint(rng.normal(0, 14, 100_000)).astype(int)
    counts = np.bincount(np.clip(every_third, -128, 127) + 192, minlength=len(HISTOGRAM) - 1)
    edges, heights = densities(counts)
    assert np.sum(heights * np.diff(edges)) == pytest.approx(1)
    inside = heights[np.abs(edges[:-1]) < 60]
    ups = np.diff(np.sign(np.diff(inside)))
    assert np.count_nonzero(ups) == 1  # up to the middle, then down
    assert inside.min() > 0


def test_page_is_the_same_every_time(found, graph) -> None:
    assert render(found, graph) == render(found, graph)


def test_page_tells_what_differs(graph, x, monkeypatch) -> None:
    def spoiled(graph):
        def run(q):
            values = reference.trace(graph, q)
            name = graph.nodes[2].name
            values[name] = values[name] + (np.arange(values[name].size) == 5).reshape(
                values[name].shape
            )
            return inprocess.Run(values, 0, 0)

        return run

    monkeypatch.setattr(he, "COMMANDS", replace(he.COMMANDS, in_process=spoiled))
    found = compare(graph, x[:4], ("reference", "he"), 4)
    assert found.report["engines"]["he"]["first_difference"] == graph.nodes[2].name
    text = render(found, graph)
    assert "✗ 1 of 152 integers differ" in text
    assert text.count('<tr class="differs">') == 1


def test_run_time_scales(model, x) -> None:
    from secure_quant.errors import OpNotSupported
    from secure_quant.quantizer.floats import float_values

    graph = quantize(model, x, mode="dynamic")
    floats = float_values(model, graph, x)
    engines = ("reference", "mpc", "he")
    found = compare(graph, x, engines, 8, floats=floats, skip_refused=True)
    assert found.report["bit_exact"] is True
    assert set(found.report["engines"]) == {"he"}
    assert set(found.report["refused"]) == {"mpc"}
    assert all(
        layer.get("float_error_max", 0) < 0.1 * layer.get("float_peak", 1)
        for layer in found.report["layers"]
    )
    assert "Secret sharing refuses this model" in render(found, graph)
    with pytest.raises(OpNotSupported):
        compare(graph, x, engines, 8)


def test_names_are_escaped(x, graph, found) -> None:
    report = dict(found.report)
    report["layers"] = [dict(report["layers"][0], name="<script>alert(1)</script>")]
    assert "<script>" not in render(type(found)(report, {}), graph)


def test_command(tmp_path: Path, graph, x, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "owner.py").write_text(OWNER)
    save(graph, tmp_path / "model.sq")
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(len(x), np.int64))
    command = ["verify", str(tmp_path / "model.sq"), "--input", str(tmp_path / "x.npz")]
    command += ["--float", f"{tmp_path / 'owner.py'}:build", "--engines", "reference,onnx"]
    assert main([*command, "--html", str(tmp_path / "page.html"), "--limit", "12"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "bit-exact: yes"
    assert "Weight schemes" in (tmp_path / "page.html").read_text()
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(3, np.int64))
    assert main(command) != 0
    assert "labels y" in capsys.readouterr().err
