"""The examples run, say what they promise, and stay short."""

import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


def run(monkeypatch, capsys, name, *arguments):
    """What the example prints; it must end well."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    code = 0
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    except SystemExit as end:
        code = end.code
    assert not code
    return capsys.readouterr().out


def percentages(text):
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_quantize_your_own_model(monkeypatch, capsys, tmp_path):
    path = tmp_path / "model.sq"
    out = run(monkeypatch, capsys, "quantize_your_own_model", "--samples", 2, "--out", path)
    assert out.rstrip().endswith("bit-exact: yes")
    for engine in ("secret sharing", "homomorphic encryption", "one host"):
        assert f"{engine}: 0 of 10 output" in out
    assert path.stat().st_size > 0


def test_serve_and_infer(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "serve_and_infer", "--samples", 2, "--epochs", 2)
    assert out.rstrip().endswith("bit-exact: yes")
    same = r"plaintext says (\d), secret sharing \1, homomorphic \1, one host \1"
    assert len(re.findall(rf"digit \d: {same}", out)) == 2


def test_compare_schemes(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "compare_schemes", "--epochs", 1, "--images", 60)
    rows = [line.split() for line in out.splitlines()[2:]]
    assert len(rows) == 8
    assert {float(row[-1]) <= 0.26 for row in rows} == {True}
    assert sum(float(row[-1]) <= 0.14 for row in rows) == 3


def test_qat(monkeypatch, capsys):
    floats, after, trained = percentages(run(monkeypatch, capsys, "qat"))
    assert floats > trained > after + 10


def test_transformer(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "transformer", "--epochs", 2, "--samples", 1)
    assert out.rstrip().endswith("bit-exact: yes")
    floats, integers = percentages(out)
    assert abs(floats - integers) < 3


def test_every_example_is_tested():
    assert {f"test_{name}" for name in EXAMPLES} <= set(globals())


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short_and_listed(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 80
    assert f"examples/{name}.py" in (FOLDER.parent / "README.md").read_text()
