"""Tables, units and JSON."""

import io
import json
import sys

import numpy as np
import pytest

from secure_quant_cli.console import (
    Progress,
    folded,
    human_bytes,
    milliseconds,
    paint,
    print_json,
    progress,
    table,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (65_432, "65.4 KB"),
        (999_499, "999 KB"), (999_999, "1.00 MB"), (2_340_000, "2.34 MB"), (5e12, "5.00 TB"),
    ],
)  # fmt: skip
def test_bytes_have_three_digits(count: float | None, text: str) -> None:
    assert human_bytes(count) == text


def test_milliseconds() -> None:
    assert [milliseconds(t) for t in (None, 8.214, 1214.4)] == ["–", "8.21 ms", "1214 ms"]


def test_columns_line_up() -> None:
    lines = table(("name", "n"), [("conv1", 5), ("fc", 12345)]).splitlines()
    assert lines == ["  name       n", "  ─────  ─────", "  conv1      5", "  fc     12345"]


def test_json_takes_numpy_and_refuses_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"y": np.array([[1, 2]], np.int8), "t": np.float32(0.5), "none": None})
    assert json.loads(capsys.readouterr().out) == {"y": [[1, 2]], "t": 0.5, "none": None}
    with pytest.raises(ValueError, match="JSON"):
        print_json({"bad": float("nan")})
    with pytest.raises(TypeError, match="object"):
        print_json({"bad": object()})


def test_progress_tells_the_outcome_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("first"):
        pass
    with pytest.raises(KeyError), progress("second"):
        raise KeyError
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "first: done" in captured.err
    assert "second: failed" in captured.err


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    header = ["layer", "op", *(f"figure number {i}" for i in range(9))]
    rows = [[f"block.{i}." * 9, "Requantize", *range(9)] for i in range(3)]
    made = table(header, rows, left=2)
    assert max(map(len, made.splitlines())) <= width
    words = made.replace("─", " ").split()
    for i in range(9):  # every column once, each number three times
        assert made.count(f"figure number {i}") == 1
        assert words.count(str(i)) == 4
    for part in made.split("\n\n"):
        assert len(part.splitlines()) == 5
        assert all("block" in line for line in part.splitlines()[2:])


def test_a_paragraph_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    lines = folded("  mpc     " + "rounds 12, bytes 18.5 KB, " * 9, hang=10).splitlines()
    assert max(map(len, lines)) <= 50
    assert {line[:10] for line in lines[1:]} == {" " * 10}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert paint("yes", "green", io.StringIO()) == "yes"
    assert paint("yes", "green", Terminal()) == "\x1b[32myes\x1b[0m"
    monkeypatch.setenv("TERM", "dumb")
    assert paint("yes", "green", Terminal()) == "yes"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("yes", "green", Terminal()) == "yes"


def test_a_bar_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    line = Progress("64 images")
    start = line._start
    line.part(16, 64)
    assert line.line(start + 8) == "64 images ... █████··············· 16/64 8 s (24 s left)"
    assert line.line(start + 80).endswith("80 s (4 min left)")
    line.part(64, 64)
    assert "left" not in line.line(start + 99)
    line.step("calibrating", 0, 1)
    assert "64/64" not in line.line(start + 99)
    assert "calibrating" in line.line(start + 99)


def test_a_share_of_the_work_is_shown_in_percent_with_what_is_worked_on() -> None:
    line = Progress("inferring 1 samples")
    line.share(0.251, "layer1.conv2")
    now = line._start + 10
    shown = line.line(now)
    assert "layer1.conv2 █████···············" in shown
    assert "25 %" in shown
    assert "(30 s left)" in shown
    line.share(1.0, "")
    assert line.line(now).endswith("████████████████████ 100 % 10 s")
